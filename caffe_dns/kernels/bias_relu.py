"""A bias for each channel and the ReLU after it, and in backward both gradients, in one pass."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.layout import laid_out, layout_of, slice_of, tile


@triton.jit
def _forward(
    blob,
    bias,
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
    # NaN stays NaN.
    tl.store(blob + where, tl.where(value < 0, 0.0, value), mask=inside)


@triton.jit
def _backward(
    top,
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

    The gradient above is in a blob of `wide` channels.
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
        value = tl.load(top + where, mask=inside, other=0.0)
        gradient = tl.where(value > 0, gradient, 0.0)
        tl.store(result + where, gradient, mask=inside)
        total += gradient.to(tl.float32)
        start += splits * HEIGHT
    known = channels < num_channels
    tl.store(sums + split * num_channels + channels, tl.sum(total, 0)[None, :], mask=known)


class BiasedReLU(torch.autograd.Function):
    """relu(x + bias), written over x.

    `x` is N x C x spatial axes, float32 or bfloat16, the bias has C numbers. No one else may need
    x as it was.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        top = laid_out(x)
        if top is x:
            ctx.mark_dirty(x)
        layout = layout_of(top)
        _forward[(layout.row_blocks, layout.column_blocks)](top, bias, **layout.settings)
        ctx.save_for_backward(top)
        ctx.bias_type = bias.dtype
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (top,) = ctx.saved_tensors
        layout = layout_of(top)
        result = torch.empty_like(top)
        sums = torch.empty((layout.splits, layout.channels), device=top.device)
        _backward[(layout.column_blocks, layout.splits)](
            top, *slice_of(gradients[0], like=top), result, sums, **layout.settings
        )
        return result, sums.sum(0).to(ctx.bias_type)
