"""Batch normalisation with what stands around it: factor and shift before, ReLU after.

PyTorch reads and writes the blob five times more for the same. Statistics are taken around a pivot
near the mean, so that a large mean does not cost digits, and summed in a fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.layout import Layout, laid_out, layout_of, tile

#: For how many channels a program adds up the sums of all splits, and how many splits at a time.
FINISHED, SPLITS = 16, 128


@triton.jit
def _load(blob, rows, channels, num_rows, num_channels, plane, LAST: tl.constexpr):
    """A tile in float32, zeros beyond the blob, and which of its places are inside."""
    inside, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
    return tl.load(blob + where, mask=inside, other=0.0).to(tl.float32), inside, where


@triton.jit
def _sum(
    blob,
    pivots,
    sums,
    num_rows,
    num_channels,
    plane,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of x - pivot and of its square for each channel, over a share of the rows.

    The pivot is the mean of the first rows.
    """
    split, splits = tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.arange(0, HEIGHT)[:, None]
    first, _, _ = _load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    pivot = tl.sum(first, 0)[None, :] / tl.minimum(num_rows, HEIGHT)
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    squares = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    start = split * HEIGHT
    while start < num_rows:
        x, inside, _ = _load(blob, start + rows, channels, num_rows, num_channels, plane, LAST)
        distance = tl.where(inside, x - pivot, 0.0)
        total += distance
        squares += distance * distance
        start += splits * HEIGHT
    known = channels < num_channels
    place = sums + 2 * split * num_channels + channels
    tl.store(place, tl.sum(total, 0)[None, :], mask=known)
    tl.store(place + num_channels, tl.sum(squares, 0)[None, :], mask=known)
    tl.store(pivots + channels, pivot, mask=known & (split == 0))


@triton.jit
def _add_up(sums, splits, channels, num_channels, SPLITS: tl.constexpr, FINISHED: tl.constexpr):
    """Both sums of each channel over all splits, some splits at a time."""
    known = channels < num_channels
    first = tl.zeros((SPLITS, FINISHED), tl.float32)
    second = tl.zeros((SPLITS, FINISHED), tl.float32)
    split = tl.arange(0, SPLITS)[:, None]
    start = 0
    while start < splits:
        place = sums + 2 * (start + split) * num_channels + channels[None, :]
        inside = (start + split < splits) & known[None, :]
        first += tl.load(place, mask=inside, other=0.0)
        second += tl.load(place + num_channels, mask=inside, other=0.0)
        start += SPLITS
    return tl.sum(first, 0), tl.sum(second, 0)


@triton.jit
def _finish(
    sums,
    splits,
    pivots,
    bias,
    means,
    inverse_stds,
    mean_sums,
    variance_sums,
    batches,
    num_rows,
    num_channels,
    eps,
    fraction,
    unbias,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    FINISHED: tl.constexpr,
):
    """Mean and 1 / standard deviation of each channel; takes the batch into the statistics."""
    channels = tl.program_id(0) * FINISHED + tl.arange(0, FINISHED)
    known = channels < num_channels
    total, squares = _add_up(sums, splits, channels, num_channels, SPLITS, FINISHED)
    distance = total / num_rows
    mean = tl.load(pivots + channels, mask=known, other=0.0) + distance
    variance = tl.maximum(squares / num_rows - distance * distance, 0.0)
    tl.store(means + channels, mean, mask=known)
    tl.store(inverse_stds + channels, 1 / tl.sqrt(variance + eps), mask=known)
    if HAS_BIAS:
        mean += tl.load(bias + channels, mask=known, other=0.0)
    before = tl.load(mean_sums + channels, mask=known, other=0.0)
    tl.store(mean_sums + channels, fraction * before + mean, mask=known)
    before = tl.load(variance_sums + channels, mask=known, other=0.0)
    tl.store(variance_sums + channels, fraction * before + unbias * variance, mask=known)
    if tl.program_id(0) == 0:
        tl.store(batches, fraction * tl.load(batches) + 1)


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
    top,
    means,
    inverse_stds,
    factors,
    shifts,
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
    x, inside, where = _load(blob, rows, channels, num_rows, num_channels, plane, LAST)
    slope, intercept, _, _ = _line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    y = x * slope + intercept
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
    means,
    inverse_stds,
    factors,
    shifts,
    sums,
    num_rows,
    num_channels,
    plane,
    AFFINE: tl.constexpr,
    RELU: tl.constexpr,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Sums of the gradient, and of it times the normalised bottom, over a share of the rows."""
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
        x, inside, where = _load(blob, start + rows, channels, num_rows, num_channels, plane, LAST)
        gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
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
    total, products = _add_up(sums, splits, channels, num_channels, SPLITS, FINISHED)
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
    x, inside, where = _load(blob, rows, channels, num_rows, num_channels, plane, LAST)
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
class Statistics:
    """What BatchNorm keeps of earlier batches, changed in place by each pass.

    `fraction` is how much of it stays when a batch is taken in.
    """

    mean_sum: Tensor
    variance_sum: Tensor
    batches: Tensor
    fraction: float


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
        layout = layout_of(x)
        mean, inverse_std = _measure(x, layout, bias, statistics, eps)
        top = torch.empty_like(x)
        _apply[(layout.row_blocks, layout.column_blocks)](
            x,
            top,
            mean,
            inverse_std,
            factor,
            shift,
            **layout.settings,
            AFFINE=factor is not None,
            RELU=relu,
        )
        ctx.save_for_backward(x, factor, shift, mean, inverse_std)
        ctx.relu = relu
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, factor, shift, mean, inverse_std = ctx.saved_tensors
        layout = layout_of(x)
        gradient = laid_out(gradients[0], like=x)
        settings = layout.settings | {"AFFINE": factor is not None, "RELU": ctx.relu}
        sums = mean.new_empty((layout.splits, 2, layout.channels))
        _sum_gradients[(layout.column_blocks, layout.splits)](
            x, gradient, mean, inverse_std, factor, shift, sums, **settings
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
        result = torch.empty_like(x)
        _bottom_gradient[(layout.row_blocks, layout.column_blocks)](
            x,
            gradient,
            result,
            mean,
            inverse_std,
            factor,
            shift,
            along_shift,
            along_factor,
            **settings,
        )
        affine = (None, None) if factor is None else (along_factor, along_shift)
        bias = torch.zeros_like(mean) if ctx.needs_input_grad[3] else None
        return result, *affine, bias, None, None, None


def _measure(
    x: Tensor, layout: Layout, bias: Tensor | None, statistics: Statistics, eps: float
) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each channel."""
    channels = layout.channels
    pivot, mean, inverse_std = torch.empty((3, channels), device=x.device)
    sums = torch.empty((layout.splits, 2, channels), device=x.device)
    _sum[(layout.column_blocks, layout.splits)](x, pivot, sums, **layout.settings)
    _finish[(triton.cdiv(channels, FINISHED),)](
        sums,
        layout.splits,
        pivot,
        bias,
        mean,
        inverse_std,
        statistics.mean_sum,
        statistics.variance_sum,
        statistics.batches,
        layout.rows,
        channels,
        eps,
        statistics.fraction,
        layout.rows / max(1, layout.rows - 1),
        HAS_BIAS=bias is not None,
        SPLITS=SPLITS,
        FINISHED=FINISHED,
    )
    return mean, inverse_std
