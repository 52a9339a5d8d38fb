"""A bias for each channel and the ReLU after it, and both gradients, in one pass each.

The top takes the place of the bottom, or is written to a given place, such as among the channels of
a larger blob.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.layout import laid_out, layout_of, slice_of, tile


@triton.jit
def _forward(
    blob,
    top,
    bias,
    wide,
    num_rows,
    num_channels,
    plane,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rows = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT)[:, None]
    inside, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
    value = tl.load(blob + where, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(bias + channels, mask=channels < num_channels, other=0.0).to(tl.float32)
    _, place = tile(rows, channels, num_rows, wide, plane, LAST)
    # NaN stays NaN.
    tl.store(top + place, tl.where(value < 0, 0.0, value), mask=inside)


@triton.jit
def _backward(
    top,
    wide_top,
    gradients,
    wide,
    result,
    sums,
    num_rows,
    num_channels,
    plane,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient below the ReLU, and its sum for each channel over a share of the rows.

    The gradient above is part of a blob of `wide` channels, the top of one of `wide_top`.
    """
    split, splits = tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    start = split * HEIGHT
    while start < num_rows:
        rows = start + tl.arange(0, HEIGHT)[:, None]
        inside, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
        _, place = tile(rows, channels, num_rows, wide, plane, LAST)
        gradient = tl.load(gradients + place, mask=inside, other=0.0)
        _, place = tile(rows, channels, num_rows, wide_top, plane, LAST)
        value = tl.load(top + place, mask=inside, other=0.0)
        gradient = tl.where(value > 0, gradient, 0.0)
        tl.store(result + where, gradient, mask=inside)
        total += gradient.to(tl.float32)
        start += splits * HEIGHT
    known = channels < num_channels
    tl.store(sums + split * num_channels + channels, tl.sum(total, 0)[None, :], mask=known)


@dataclass(frozen=True)
class Place:
    """Some channels, from `start` on, of a channels-last blob."""

    wide: Tensor
    start: int


class BiasedReLU(torch.autograd.Function):
    """relu(x + bias), written over x or, if x has its channels innermost, to a place.

    `x` is N x C x spatial axes, float32 or bfloat16, the bias has C numbers. No one else may need
    x as it was.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor, place: Place | None = None) -> Tensor:
        values = laid_out(x)
        layout = layout_of(values)
        top, wide = values, layout.channels
        if place is not None:
            top, wide = place.wide.narrow(1, place.start, wide), place.wide.shape[1]
        elif values is x:
            ctx.mark_dirty(x)
        _forward[(layout.row_blocks, layout.column_blocks)](
            values, top, bias, wide, **layout.settings
        )
        ctx.save_for_backward(top)
        ctx.bias_type = bias.dtype
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        (top,) = ctx.saved_tensors
        result = torch.empty_like(top)  # of these channels alone
        layout = layout_of(result)
        sums = torch.empty((layout.splits, layout.channels), device=top.device)
        _backward[(layout.sum_blocks, layout.splits)](
            *slice_of(top, like=result),
            *slice_of(gradients[0], like=result),
            result,
            sums,
            **layout.sums,
        )
        return result, add_up_splits(sums, ctx.bias_type), None


class Rectified(torch.autograd.Function):
    """The identity on what is relu(x + bias) already; x is needed only in backward."""

    @staticmethod
    def forward(ctx: Any, top: Tensor, bias: Tensor) -> Tensor:
        ctx.mark_dirty(top)
        ctx.save_for_backward(top)
        ctx.bias_type = bias.dtype
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        below, along, _ = BiasedReLU.backward(ctx, *gradients)
        return below, along
