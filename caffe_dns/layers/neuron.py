"""Elementwise layers with one bottom (`neuron_layer.hpp`).

The top has the bottom's shape. What combines several bottoms or several entries is in `arithmetic`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import Layer, SameShape, Shape, layer_types
from caffe_dns.layers.checks import refuse_in_place
from caffe_dns.proto.caffe_pb2 import FillerParameter


@layer_types.register("ReLU")
class ReLU(SameShape):
    """max(x, 0) + negative_slope * min(x, 0); at 0 the gradient is the slope (`relu_layer.cpp`)."""

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.negative_slope = self.param.relu_param.negative_slope

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.negative_slope == 0:
            return torch.relu(bottoms[0])
        return F.leaky_relu(bottoms[0], self.negative_slope)


@layer_types.register("PReLU")
class PReLU(SameShape):
    """A ReLU whose slope below 0 is learned (`prelu_layer.cpp`).

    blobs: the slopes, of shape (channels,), or () with `channel_shared`; 0.25 without a filler.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.prelu_param
        shape = bottom_shapes[0]
        if len(shape) < 2:
            raise self.error(f"the bottom needs at least 2 axes, it has {len(shape)}", "bottom")
        filler = FillerParameter(type="constant", value=0.25)
        if settings.HasField("filler"):
            filler = settings.filler
        self.add_parameter(() if settings.channel_shared else (shape[1],), filler, "weight")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        slopes = self.blobs[0]
        if slopes.dim() and bottom_shapes[0][1] != len(slopes):
            raise self.error(
                f"there are {len(slopes)} slopes for the {bottom_shapes[0][1]} channels", "bottom"
            )
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        return F.prelu(bottoms[0], self.blobs[0])


@layer_types.register("Sigmoid")
class Sigmoid(SameShape):
    """1 / (1 + exp(-x)) (`sigmoid_layer.cpp`)."""

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.sigmoid(bottoms[0])


@layer_types.register("TanH")
class TanH(SameShape):
    """The hyperbolic tangent (`tanh_layer.cpp`)."""

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.tanh(bottoms[0])


@layer_types.register("ELU")
class ELU(SameShape):
    """x above 0, alpha * (exp(x) - 1) elsewhere (`elu_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.alpha = self.param.elu_param.alpha

    def forward(self, *bottoms: Tensor) -> Tensor:
        return F.elu(bottoms[0], self.alpha)


@layer_types.register("Swish")
class Swish(SameShape):
    """x * sigmoid(beta * x) (`swish_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.beta = self.param.swish_param.beta

    def forward(self, *bottoms: Tensor) -> Tensor:
        return bottoms[0] * torch.sigmoid(self.beta * bottoms[0])


@layer_types.register("BNLL")
class BNLL(SameShape):
    """log(1 + exp(x)) (`bnll_layer.cpp`)."""

    def forward(self, *bottoms: Tensor) -> Tensor:
        # Beyond 50 Caffe, too, lets the derivative be that of x.
        return F.softplus(bottoms[0], threshold=50.0)


@layer_types.register("AbsVal")
class AbsVal(SameShape):
    """|x|; the gradient at 0 is 0 (`absval_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_in_place(self)

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.abs(bottoms[0])


@layer_types.register("Power")
class Power(SameShape):
    """(shift + scale * x) ^ power (`power_layer.cpp`).

    The gradient is the derivative also where the base is 0; Caffe divides by the base there and
    gets NaN.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.power_param
        self.power, self.scale, self.shift = settings.power, settings.scale, settings.shift

    def forward(self, *bottoms: Tensor) -> Tensor:
        if self.power == 0 or self.scale == 0:
            # The same number everywhere, whatever stands in the bottom; the gradient is 0.
            return torch.full_like(bottoms[0], self.shift).pow(self.power)
        base = _affine(bottoms[0], self.scale, self.shift)
        return base if self.power == 1 else base.pow(self.power)


@layer_types.register("Exp")
class Exp(SameShape):
    """base ^ (shift + scale * x); base -1 stands for e (`exp_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.exp_param
        log_base = _log_of_base(self, settings.base, "exp_param.base")
        self.scale = log_base * settings.scale
        self.shift = log_base * settings.shift

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.exp(_affine(bottoms[0], self.scale, self.shift))


@layer_types.register("Log")
class Log(SameShape):
    """The logarithm of shift + scale * x to a base; base -1 stands for e (`log_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.log_param
        log_base = _log_of_base(self, settings.base, "log_param.base")
        if log_base == 0:
            raise self.error("there is no logarithm to the base 1", "log_param.base")
        self.scale, self.shift = settings.scale, settings.shift
        self.outer_scale = 1.0 / log_base

    def forward(self, *bottoms: Tensor) -> Tensor:
        logarithm = torch.log(_affine(bottoms[0], self.scale, self.shift))
        return _affine(logarithm, self.outer_scale, 0.0)


@layer_types.register("Clip")
class Clip(SameShape):
    """max(min, min(x, max)); the gradient passes where min <= x <= max (`clip_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.clip_param
        for name in ("min", "max"):
            if not settings.HasField(name):
                raise self.error("must be given", f"clip_param.{name}")
        self.least, self.most = settings.min, settings.max

    def forward(self, *bottoms: Tensor) -> Tensor:
        # In two steps, because with min > max torch gives max and Caffe min.
        return bottoms[0].clamp(max=self.most).clamp(min=self.least)


@layer_types.register("Threshold")
class Threshold(SameShape):
    """1 where x is above the threshold, else 0; it has no gradient (`threshold_layer.cpp`)."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.threshold = self.param.threshold_param.threshold

    def forward(self, *bottoms: Tensor) -> Tensor:
        return (bottoms[0] > self.threshold).to(bottoms[0].dtype)


@layer_types.register("Dropout")
class Dropout(SameShape):
    """While training, 0 with probability dropout_ratio, else x / (1 - dropout_ratio).

    In a test pass the top is the bottom (`dropout_layer.cpp`). With the `scale_train: false` of
    Faster R-CNN's fork it is x while training, and x * (1 - dropout_ratio) in a test pass. With the
    `sample_weights_test: true` of SegNet's fork, test passes do as training does.
    """

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.dropout_param
        ratio = settings.dropout_ratio
        if not 0 <= ratio < 1:
            raise self.error(
                f"is {ratio:g}; at least 0 and below 1 would be right",
                "dropout_param.dropout_ratio",
            )
        self.keep_ratio = 1.0 - ratio
        #: What test passes multiply by.
        self.test_scale = 1.0 if settings.scale_train else self.keep_ratio
        self.samples_always = settings.sample_weights_test

    def forward(self, *bottoms: Tensor) -> Tensor:
        if not (self.training or self.samples_always):
            return _affine(bottoms[0], self.test_scale, 0)
        if self.keep_ratio == 1:
            return bottoms[0]
        kept = torch.empty_like(bottoms[0]).bernoulli_(self.keep_ratio, generator=self.generator())
        return bottoms[0] * kept.div_(self.keep_ratio / self.test_scale)


def _affine(values: Tensor, scale: float, shift: float) -> Tensor:
    """scale * values + shift, without a kernel for what changes nothing."""
    if scale != 1:
        values = values * scale
    return values + shift if shift != 0 else values


def _log_of_base(layer: Layer, base: float, field: str) -> float:
    """The natural logarithm of `base`; -1 stands for e. Raises CaffeError for other bases <= 0."""
    if base == -1:
        return 1.0
    if not 0 < base < math.inf:
        raise layer.error(f"is {base:g}; a positive number, or -1 for e, would be right", field)
    return math.log(base)
