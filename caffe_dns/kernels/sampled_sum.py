"""A normalised sum of which only some pixels are made: the first of every other two, say.

Where a stage of a ResNet begins, all that reads the sum are convolutions of single pixels with a
stride: they look at a quarter of it, and only that has a gradient. Channels are innermost.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.batch_norm import (
    Normalization,
    handed_down,
    line,
    store_signs,
    tile_from_end,
)
from caffe_dns.kernels.channel_statistics import Statistics, Sums, measured
from caffe_dns.kernels.layout import laid_out, layout_of
from caffe_dns.kernels.normalized import added_up

#: Channels whose signs take a byte.
BITS = 8


@triton.jit
def _add(
    x, addend, top, chosen, signs,
    means, inverse_stds, factors, shifts,
    addend_means, addend_inverse_stds, addend_factors, addend_shifts,
    num_rows, num_channels, height, width, top_height, top_width,
    AFFINE: tl.constexpr, POSTPONED: tl.constexpr, ADDEND_AFFINE: tl.constexpr,
    STRIDE: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of the top, its signs, and what x was there."""
    rows, channels = tile_from_end(num_rows, num_channels, True, HEIGHT, COLUMNS)
    inside = (rows < num_rows) & (channels < num_channels)
    row = rows // top_width % top_height * STRIDE
    row = (rows // (top_width * top_height) * height + row) * width + rows % top_width * STRIDE
    where = row * num_channels + channels
    value = tl.load(x + where, mask=inside, other=0.0)
    slope, intercept, _, _ = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    y = value.to(tl.float32) * slope + intercept
    other = tl.load(addend + where, mask=inside, other=0.0).to(tl.float32)
    if POSTPONED:
        slope, intercept, _, _ = line(
            addend_means, addend_inverse_stds, addend_factors, addend_shifts, channels,
            num_channels, ADDEND_AFFINE,
        )  # fmt: skip
        other = other * slope + intercept
    y += other
    # NaN stays NaN.
    y = tl.where(y < 0, 0.0, y).to(top.dtype.element_ty)
    where = rows * num_channels + channels
    tl.store(top + where, y, mask=inside)
    tl.store(chosen + where, value, mask=inside)
    store_signs(signs, y, rows, channels, num_rows, num_channels, HEIGHT, COLUMNS)


@triton.jit
def _spread(
    x, passed, result, along_addend,
    means, inverse_stds, factors, shifts, shift_gradients, factor_gradients,
    num_rows, num_channels, height, width, top_height, top_width,
    AFFINE: tl.constexpr, STRIDE: tl.constexpr, HEIGHT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile of the gradients of x and the addend, from what is `passed` to the pixels chosen."""
    rows, channels = tile_from_end(num_rows, num_channels, True, HEIGHT, COLUMNS)
    inside = (rows < num_rows) & (channels < num_channels)
    row, column = rows // width % height, rows % width
    is_chosen = inside & (row % STRIDE == 0) & (column % STRIDE == 0)
    row = rows // (width * height) * top_height + row // STRIDE
    place = (row * top_width + column // STRIDE) * num_channels + channels
    gradient = tl.load(passed + place, mask=is_chosen, other=0.0)
    where = rows * num_channels + channels
    tl.store(along_addend + where, gradient, mask=inside)
    slope, _, mean, inverse_std = line(
        means, inverse_stds, factors, shifts, channels, num_channels, AFFINE
    )
    value = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
    below = handed_down(
        value, gradient.to(tl.float32), slope, mean, inverse_std, shift_gradients,
        factor_gradients, channels, num_rows, num_channels,
    )  # fmt: skip
    tl.store(result + where, below, mask=inside)


def fits(x: Tensor) -> bool:
    """Whether the kernels can do this blob, of a type and a size that kernels suit."""
    images = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    return images and x.shape[1] % BITS == 0 and layout_of(x).last


class SampledSum(torch.autograd.Function):
    """The pixels of `NormalizedSum` that a stride leads to, N x C x rows x columns of them."""

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
        sums: Sums | None,
        postponed: Normalization | None,
        stride: int,
    ) -> tuple[Tensor, ...]:
        mean, inverse_std = measured(x, sums, bias, statistics, eps)
        done = Normalization(x, mean, inverse_std, factor, shift, relu=True)
        top, chosen, signs = _chosen(done, laid_out(addend, like=x), postponed, stride)
        ctx.save_for_backward(x, chosen, signs, mean, inverse_std, factor, shift)
        ctx.stride = stride
        ctx.set_materialize_grads(False)
        return top, *(top.view_as(top) for _ in range(copies - 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, chosen, signs, mean, inverse_std, factor, shift = ctx.saved_tensors
        first, more = added_up(gradients, chosen)
        if first is None:
            return (None,) * 11
        # All that a channel's gradient adds up is what the chosen pixels are handed.
        passed = torch.empty_like(first)
        whole = Normalization(x, mean, inverse_std, factor, shift, relu=True)
        sampled = replace(whole, x=chosen)
        along = sampled.parameter_gradients(first, more, signs, passed)
        result, along_addend = _all_pixels(whole, passed, along, ctx.stride)
        bias = torch.zeros_like(mean) if ctx.needs_input_grad[4] else None
        shared = (None, None) if factor is None else (along[1], along[0])
        return result, along_addend, *shared, bias, *[None] * 6


def _chosen(
    done: Normalization, addend: Tensor, postponed: Normalization | None, stride: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of the sum, those of what is normalised, and the signs of the first."""
    x = done.x
    size = [-(-extent // stride) for extent in x.shape[2:]]
    top = torch.empty(
        (*x.shape[:2], *size),
        dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
    )  # fmt: skip
    chosen, layout = torch.empty_like(top), layout_of(top)
    signs = torch.empty(layout.rows, layout.channels // BITS, dtype=torch.uint8, device=x.device)
    _add[(layout.row_blocks * layout.column_blocks,)](
        x,
        addend,
        top,
        chosen,
        signs,
        *done.line,
        *(postponed.line if postponed is not None else [None] * 4),
        layout.rows,
        layout.channels,
        *x.shape[2:],
        *size,
        AFFINE=done.factor is not None,
        POSTPONED=postponed is not None,
        ADDEND_AFFINE=postponed is not None and postponed.factor is not None,
        STRIDE=stride,
        HEIGHT=layout.height,
        COLUMNS=layout.columns,
    )
    return top, chosen, signs


def _all_pixels(
    done: Normalization, passed: Tensor, along: tuple[Tensor, Tensor], stride: int
) -> tuple[Tensor, Tensor]:
    """The gradients of x and the addend from that of the chosen pixels of their sum."""
    x, layout = done.x, done.layout
    result, along_addend = torch.empty_like(x), torch.empty_like(x)
    _spread[(layout.row_blocks * layout.column_blocks,)](
        x,
        passed,
        result,
        along_addend,
        *done.line,
        *along,
        layout.rows,
        layout.channels,
        *x.shape[2:],
        *passed.shape[2:],
        AFFINE=done.factor is not None,
        STRIDE=stride,
        HEIGHT=layout.height,
        COLUMNS=layout.columns,
    )
    return result, along_addend
