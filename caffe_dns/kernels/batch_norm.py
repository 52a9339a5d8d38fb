"""Batch normalisation with what stands around it: factor and shift, a blob to be added, a ReLU.

PyTorch reads and writes the blob five times more for the same, and more often where one is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import (
    FINISHED,
    SPLITS,
    Statistics,
    add_up,
    load,
    measure,
)
from caffe_dns.kernels.layout import Layout, laid_out, layout_of, tiles_at_once


@triton.jit
def _line(means, inverse_stds, factors, shifts, channels, num_channels, AFFINE: tl.constexpr):
    """Slope and intercept of each channel's line from bottom to top, and its statistics."""
    known = channels < num_channels
    mean = tl.load(means + channels, mask=known, other=0.0)
    inverse_std = tl.load(inverse_stds + channels, mask=known, other=0.0)
    slope = inverse_std
    intercept = -mean * inverse_std
    if AFFINE:
        factor = tl.load(factors + channels, mask=known, other=0.0)
        slope = inverse_std * factor
        intercept = tl.load(shifts + channels, mask=known, other=0.0) - mean * slope
    return slope, intercept, mean, inverse_std


@triton.jit
def _apply(
    blob,
    addend,
    top,
    means,
    inverse_stds,
    factors,
    shifts,
    num_rows,
    num_channels,
    plane,
    AFFINE: tl.constexpr,
    ADDS: tl.constexpr,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    x, inside, where = load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    slope, intercept, _, _ = _line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    y = x * slope + intercept
    if ADDS:
        y += tl.load(addend + where, mask=inside, other=0.0).to(tl.float32)
    if RELU:
        # NaN stays NaN.
        y = tl.where(y < 0, 0.0, y)
    tl.store(top + where, y, mask=inside)


@triton.jit
def _pass_relu(x, gradient, slope, intercept, RELU: tl.constexpr):
    """The gradient below the ReLU."""
    if RELU:
        return tl.where(x * slope + intercept > 0, gradient, 0.0)
    return gradient


@triton.jit
def _sum_gradients(
    blob,
    gradients,
    more,
    top,
    passed,
    means,
    inverse_stds,
    factors,
    shifts,
    sums,
    num_rows,
    num_channels,
    plane,
    AFFINE: tl.constexpr,
    ADDS: tl.constexpr,
    MORE: tl.constexpr,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Sums of the gradient, and of it times the normalised bottom, over a share of the rows.

    If it adds a blob, that one's gradient, of which there may be `more` above, is `passed` on.
    """
    split, splits = tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.arange(0, HEIGHT)[:, None]
    slope, intercept, mean, inverse_std = _line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    products = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    start = split * HEIGHT
    while start < num_rows:
        for _ in tl.static_range(AT_ONCE):
            x, inside, where = load(
                blob, start + rows, channels, num_rows, num_channels, plane, LAST
            )
            gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
            if MORE:
                gradient += tl.load(more + where, mask=inside, other=0.0).to(tl.float32)
            if ADDS:
                y = tl.load(top + where, mask=inside, other=0.0)
                gradient = tl.where(y > 0, gradient, 0.0).to(passed.dtype.element_ty)
                tl.store(passed + where, gradient, mask=inside)
                gradient = gradient.to(tl.float32)
            else:
                gradient = _pass_relu(x, gradient, slope, intercept, RELU)
            total += gradient
            products += gradient * (x - mean) * inverse_std
            start += splits * HEIGHT
    known = channels < num_channels
    place = sums + 2 * split * num_channels + channels
    tl.store(place, tl.sum(total, 0)[None, :], mask=known)
    tl.store(place + num_channels, tl.sum(products, 0)[None, :], mask=known)


@triton.jit
def _finish_gradients(
    sums,
    splits,
    shift_gradients,
    factor_gradients,
    num_channels,
    SPLITS: tl.constexpr,
    FINISHED: tl.constexpr,
):
    channels = tl.program_id(0) * FINISHED + tl.arange(0, FINISHED)
    known = channels < num_channels
    total, products = add_up(sums, splits, channels, num_channels, SPLITS, FINISHED)
    tl.store(shift_gradients + channels, total, mask=known)
    tl.store(factor_gradients + channels, products, mask=known)


@triton.jit
def _bottom_gradient(
    blob,
    gradients,
    result,
    means,
    inverse_stds,
    factors,
    shifts,
    shift_gradients,
    factor_gradients,
    num_rows,
    num_channels,
    plane,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    x, inside, where = load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    slope, intercept, mean, inverse_std = _line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
    gradient = _pass_relu(x, gradient, slope, intercept, RELU)
    known = channels < num_channels
    along_shift = tl.load(shift_gradients + channels, mask=known, other=0.0) / num_rows
    along_factor = tl.load(factor_gradients + channels, mask=known, other=0.0) / num_rows
    gradient -= along_shift + (x - mean) * inverse_std * along_factor
    tl.store(result + where, gradient * slope, mask=inside)


@dataclass(frozen=True)
class Normalization:
    """A batch and what became of it: relu((x - mean) * inverse_std * factor + shift + addend).

    Factor and shift are float32, C numbers each, or both None. Where there is an addend, the ReLU
    is passed backwards by the top, else by what the bottom becomes.
    """

    x: Tensor
    mean: Tensor
    inverse_std: Tensor
    factor: Tensor | None
    shift: Tensor | None
    relu: bool

    @property
    def layout(self) -> Layout:
        return layout_of(self.x)

    def top(self, addend: Tensor | None = None) -> Tensor:
        """The top, of x's type and memory format; so is the addend."""
        layout = self.layout
        top = torch.empty_like(self.x)
        _apply[(layout.row_blocks, layout.column_blocks)](
            self.x,
            addend,
            top,
            self.mean,
            self.inverse_std,
            self.factor,
            self.shift,
            **layout.settings,
            AFFINE=self.factor is not None,
            ADDS=addend is not None,
            RELU=self.relu,
        )
        return top

    def gradients(
        self, gradient: Tensor, more: Tensor | None = None, top: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Those of x, factor, shift and addend, from one of the top's and, perhaps, `more` of it.

        `top` is given where there is an addend. All are in x's memory format.
        """
        layout, mean = self.layout, self.mean
        passed = torch.empty_like(gradient) if top is not None else None
        statistics = (mean, self.inverse_std, self.factor, self.shift)
        affine = {"AFFINE": self.factor is not None}
        sums = mean.new_empty((layout.splits, 2, layout.channels))
        _sum_gradients[(layout.sum_blocks, layout.splits)](
            self.x,
            gradient,
            more,
            top,
            passed,
            *statistics,
            sums,
            **layout.sums,
            **affine,
            AT_ONCE=tiles_at_once(self.x) if top is None else 1,
            ADDS=top is not None,
            MORE=more is not None,
            RELU=self.relu,
        )
        along_shift, along_factor = torch.empty_like(mean), torch.empty_like(mean)
        _finish_gradients[(triton.cdiv(layout.channels, FINISHED),)](
            sums,
            layout.splits,
            along_shift,
            along_factor,
            layout.channels,
            SPLITS=SPLITS,
            FINISHED=FINISHED,
        )
        result = torch.empty_like(self.x)
        _bottom_gradient[(layout.row_blocks, layout.column_blocks)](
            self.x,
            gradient if passed is None else passed,
            result,
            *statistics,
            along_shift,
            along_factor,
            **layout.settings,
            **affine,
            RELU=self.relu and passed is None,
        )
        if self.factor is None:
            return result, None, None, passed
        return result, along_factor, along_shift, passed


class NormalizedBatch(torch.autograd.Function):
    """relu((x - mean) / sqrt(variance + eps) * factor + shift), in x's type and memory format.

    `x` is N x C x spatial axes, float32 or bfloat16; factor and shift are float32, C numbers each,
    or both None. `bias` stands for a bias that was to be added to x before: it moves nothing but
    the mean in the statistics, and its gradient is 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        relu: bool,
    ) -> Tensor:
        x = laid_out(x)
        mean, inverse_std = measure(x, layout_of(x), bias, statistics, eps)
        ctx.save_for_backward(x, mean, inverse_std, factor, shift)
        ctx.relu = relu
        return Normalization(x, mean, inverse_std, factor, shift, relu).top()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse_std, factor, shift = ctx.saved_tensors
        done = Normalization(x, mean, inverse_std, factor, shift, ctx.relu)
        result, along_factor, along_shift, _ = done.gradients(laid_out(gradients[0], like=x))
        bias = torch.zeros_like(mean) if ctx.needs_input_grad[3] else None
        return result, along_factor, along_shift, bias, None, None, None


class NormalizedSum(torch.autograd.Function):
    """relu((x - mean) / sqrt(variance + eps) * factor + shift + addend), `copies` times.

    As `NormalizedBatch`, with an addend of x's shape and type. Each of the copies, which share
    their memory, has a gradient of its own; they are added up in the pass that reads them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        addend: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        copies: int,
    ) -> tuple[Tensor, ...]:
        x = laid_out(x)
        mean, inverse_std = measure(x, layout_of(x), bias, statistics, eps)
        done = Normalization(x, mean, inverse_std, factor, shift, relu=True)
        top = done.top(laid_out(addend, like=x))
        ctx.save_for_backward(x, mean, inverse_std, factor, shift, top)
        ctx.set_materialize_grads(False)
        return top, *(top.view_as(top) for _ in range(copies - 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, mean, inverse_std, factor, shift, top = ctx.saved_tensors
        given = [laid_out(gradient, like=x) for gradient in gradients if gradient is not None]
        if not given:
            return (None,) * 8
        first, *others = given
        more = sum(others[1:], others[0]) if others else None
        done = Normalization(x, mean, inverse_std, factor, shift, relu=True)
        result, along_factor, along_shift, passed = done.gradients(first, more, top)
        bias = torch.zeros_like(mean) if ctx.needs_input_grad[4] else None
        return result, passed, along_factor, along_shift, bias, None, None, None
