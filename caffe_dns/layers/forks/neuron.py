"""Elementwise layers that only forks have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import SameShape, Shape, layer_types

#: Where ReLU6 ends.
SIX = 6.0


@layer_types.register("ReLU6")
class ReLU6(SameShape):
    """A ReLU that stays at 6 from there on, without a gradient (MobileNet-YOLO).

    `relu6_param` may give it a slope below 0.
    """

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.negative_slope = self.param.relu6_param.negative_slope

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        if self.negative_slope == 0:
            return F.relu6(bottom)
        return torch.where(bottom >= SIX, SIX, F.leaky_relu(bottom, self.negative_slope))


@layer_types.register("Mish")
class Mish(SameShape):
    """x * tanh(log(1 + exp(x))), with its derivative (`mish_layer.cpp` of Synopsys)."""

    keeps_type = True

    def forward(self, *bottoms: Tensor) -> Tensor:
        return F.mish(bottoms[0])


@layer_types.register("HardSwish")
class HardSwish(SameShape):
    """x * min(max(x + 3, 0), 6) / 6 (`hard_swish_layer.cpp` of Synopsys)."""

    keeps_type = True

    def forward(self, *bottoms: Tensor) -> Tensor:
        return F.hardswish(bottoms[0])


@layer_types.register("Insanity")
class Insanity(SameShape):
    """Values below 0 over a divisor that is drawn from `lb` to `ub` while training.

    Each entry has one of its own, anew in each pass; else the divisor is (ub - lb) / (log |ub| -
    log |lb|), whose inverse is the mean of theirs (`insanity_layer.cpp` of happynear).
    """

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.insanity_param
        self.low, self.high = settings.lb, settings.ub
        if len(bottom_shapes[0]) < 2:
            raise self.error("the bottom needs at least 2 axes", "bottom")
        if self.high - self.low > torch.finfo(torch.float32).max:
            what = f"is {self.high:g}, too far from lb = {self.low:g}"
            raise self.error(what, "insanity_param.ub")
        if not self.low < self.high or 0 in (self.low, self.high) or self.low == -self.high:
            raise self.error(
                f"is {self.high:g}; more than lb = {self.low:g} would be right, neither of them 0, "
                "nor one the other's negative",
                "insanity_param.ub",
            )

    @property
    def slope(self) -> float:
        """What values below 0 are multiplied by when nothing is drawn."""
        return math.log(abs(self.high / self.low)) / (self.high - self.low)

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        if not self.training:
            return F.leaky_relu(bottom, self.slope)
        divisors = torch.empty_like(bottom)
        divisors.uniform_(self.low, self.high, generator=self.generator())
        return torch.where(bottom > 0, bottom, bottom / divisors)


@layer_types.register("SeLu")
class SeLu(SameShape):
    """lambda * x, below 0 lambda * alpha * (exp(x) - 1) (`selu_layer.cpp` of DeepDetect)."""

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.selu_param
        self.scale, self.alpha = getattr(settings, "lambda"), settings.alpha

    def forward(self, *bottoms: Tensor) -> Tensor:
        return self.scale * F.elu(bottoms[0], self.alpha)


@layer_types.register("SeLuDropout")
class SeLuDropout(SameShape):
    """While training, entries become `alpha` with probability dropout_ratio.

    A factor and an addend then give entries of mean 0 and variance 1 these again. In a test pass
    the top is the bottom (`selu_dropout_layer.cpp` of DeepDetect).
    """

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.selu_dropout_param
        ratio, self.alpha = settings.dropout_ratio, settings.alpha
        if not 0 < ratio < 1:
            raise self.error(
                f"is {ratio:g}; more than 0 and below 1 would be right",
                "selu_dropout_param.dropout_ratio",
            )
        self.keep_ratio = 1.0 - ratio
        self.scale = (self.keep_ratio * (1 + ratio * self.alpha**2)) ** -0.5
        self.shift = -self.scale * ratio * self.alpha

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        if not self.training:
            return bottom
        kept = torch.empty_like(bottom).bernoulli_(self.keep_ratio, generator=self.generator())
        return self.scale * torch.where(kept != 0, bottom, self.alpha) + self.shift


class _Sparsify(torch.autograd.Function):
    """Values moved towards 0, with a gradient that has a decay of theirs in it."""

    @staticmethod
    def forward(ctx: Any, bottom: Tensor, threshold: float, coefficient: float) -> Tensor:
        top = F.softshrink(bottom, threshold) if threshold else bottom.clone()
        ctx.save_for_backward(top)
        ctx.threshold, ctx.coefficient = threshold, coefficient
        return top

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (top,) = ctx.saved_tensors
        gradient = gradient + ctx.coefficient * top.sign()
        return gradient * (top != 0) if ctx.threshold else gradient, None, None


@layer_types.register("Sparsify")
class Sparsify(SameShape):
    """0 from -thre to thre, and values beyond moved by it (`sparsify_layer.cpp` of wenwei202).

    Backward adds `coef` times the sign of the top to the gradient, the L1 decay of the top.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.sparsify_param
        for name in ("thre", "coef"):
            if not getattr(settings, name) >= 0:
                raise self.error("must be at least 0", f"sparsify_param.{name}")
        self.threshold, self.coefficient = settings.thre, settings.coef

    def forward(self, *bottoms: Tensor) -> Tensor:
        top: Tensor = _Sparsify.apply(bottoms[0], self.threshold, self.coefficient)
        return top
