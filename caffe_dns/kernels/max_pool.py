"""Maximum pooling that stores one byte per window: where in it the maximum was.

PyTorch stores eight bytes, and adds gradients up where windows overlap. A bias and a ReLU before
the pooling are applied to the maxima only.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.layout import Layout, laid_out, layout_of, tile, tiles_at_once

#: The largest window, in pixels, that the kernel supports: its loops are unrolled.
LARGEST_WINDOW = 49
#: Marks a window without a pixel.
NOWHERE = tl.constexpr(255)


@triton.jit
def _maximum(
    bottom,
    bias,
    top,
    winners,
    pixels,
    num_channels,
    height,
    width,
    top_height,
    top_width,
    lowest,
    planes,
    LAST: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of the top: `pixels` are those of all images, each with its channels behind it."""
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    known = (pixel < pixels) & (channels < num_channels)
    row = pixel // top_width % top_height * SH - PH
    column = pixel % top_width * SW - PW
    image = pixel // (top_width * top_height) * height
    best = tl.full((ROWS, COLUMNS), -float("inf"), tl.float32)
    winner = tl.full((ROWS, COLUMNS), NOWHERE, tl.int32)
    for i in tl.static_range(KH):
        for j in tl.static_range(KW):
            y, x = row + i, column + j
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & known
            place = ((image + y) * width + x) * num_channels + channels
            value = tl.load(bottom + place, mask=inside, other=0.0).to(tl.float32)
            # The first maximum counts; NaN is passed on.
            better = inside & ((value > best) | (value != value) | (winner == NOWHERE))
            best = tl.where(better, value, best)
            winner = tl.where(better, i * KW + j, winner)
    empty = winner == NOWHERE
    if HAS_BIAS:
        if LAST:
            added = tl.load(bias + channels, mask=channels < num_channels, other=0.0)
        else:
            # An image is a channel's plane.
            channel = pixel // (top_width * top_height) % planes
            added = tl.load(bias + channel, mask=known, other=0.0)
        best += added.to(tl.float32)
    if RELU:
        winner = tl.where(best <= 0, NOWHERE, winner)
        best = tl.where(best < 0, 0.0, best)
    best = tl.where(empty, lowest, best)
    place = pixel * num_channels + channels
    tl.store(top + place, best, mask=known)
    tl.store(winners + place, winner.to(tl.uint8), mask=known)


@triton.jit
def _hand_down(
    gradients,
    winners,
    result,
    pixels,
    num_channels,
    height,
    width,
    top_height,
    top_width,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of the bottom's gradient: the sum over the windows that a pixel has won."""
    channels = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    known = (pixel < pixels) & (channels < num_channels)
    row = pixel // width % height + PH
    column = pixel % width + PW
    image = pixel // (width * height) * top_height
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for i in tl.static_range((KH + SH - 1) // SH):
        for j in tl.static_range((KW + SW - 1) // SW):
            y, x = row // SH - i, column // SW - j
            own = (row - y * SH) * KW + column - x * SW
            inside = (y >= 0) & (y < top_height) & (x >= 0) & (x < top_width) & known
            inside = inside & (row - y * SH < KH) & (column - x * SW < KW)
            place = ((image + y) * top_width + x) * num_channels + channels
            winner = tl.load(winners + place, mask=inside, other=NOWHERE).to(tl.int32)
            gradient = tl.load(gradients + place, mask=inside, other=0.0).to(tl.float32)
            total += tl.where(winner == own, gradient, 0.0)
    tl.store(result + pixel * num_channels + channels, total, mask=known)


@triton.jit
def _sum(
    gradients,
    winners,
    sums,
    num_rows,
    num_channels,
    plane,
    LAST: tl.constexpr,
    HEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Sums of the gradients that are handed down, for each channel over a share of the rows."""
    split, splits = tl.program_id(1), tl.num_programs(1)
    channels = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((HEIGHT, COLUMNS), tl.float32)
    start = split * HEIGHT
    while start < num_rows:
        for _ in tl.static_range(AT_ONCE):
            rows = start + tl.arange(0, HEIGHT)[:, None]
            inside, where = tile(rows, channels, num_rows, num_channels, plane, LAST)
            gradient = tl.load(gradients + where, mask=inside, other=0.0).to(tl.float32)
            winner = tl.load(winners + where, mask=inside, other=NOWHERE)
            total += tl.where(winner == NOWHERE, 0.0, gradient)
            start += splits * HEIGHT
    known = channels < num_channels
    tl.store(sums + split * num_channels + channels, tl.sum(total, 0)[None, :], mask=known)


class MaxPool(torch.autograd.Function):
    """The maximum of each window of an N x C x H x W blob, float32 or bfloat16.

    `size` is that of the top, (rows, columns); kernel, stride and pad are (height, width). A window
    without a pixel gives the lowest number. The bias has C numbers; it and the ReLU are for the
    bottom.
    """

    @staticmethod
    def forward(
        ctx: Any,
        bottom: Tensor,
        bias: Tensor | None,
        size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        pad: tuple[int, int],
        relu: bool,
    ) -> Tensor:
        bottom = laid_out(bottom)
        layout = layout_of(bottom)
        top = _empty((*bottom.shape[:2], *size), bottom.dtype, layout, bottom.device)
        winners = torch.empty_like(top, dtype=torch.uint8)
        ctx.window = (*kernel, *stride, *pad)
        ctx.shape = bottom.shape
        grid, settings = _divide(layout, top, (bottom.shape, top.shape), ctx.window)
        _maximum[grid](
            bottom,
            bias,
            top,
            winners,
            lowest=torch.finfo(top.dtype).min,
            planes=layout.channels,
            LAST=layout.last,
            HAS_BIAS=bias is not None,
            RELU=relu,
            **settings,
        )
        ctx.save_for_backward(winners)
        ctx.bias_type = None if bias is None else bias.dtype
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (winners,) = ctx.saved_tensors
        gradient = laid_out(gradients[0], like=winners)
        layout = layout_of(winners)
        result = hand_down(gradient, winners, ctx.shape, ctx.window)
        along_bias = None
        if ctx.needs_input_grad[1]:
            sums = torch.empty((layout.splits, layout.channels), device=gradient.device)
            _sum[(layout.sum_blocks, layout.splits)](
                gradient, winners, sums, **layout.sums, AT_ONCE=tiles_at_once(gradient)
            )
            along_bias = add_up_splits(sums, ctx.bias_type)
        return result, along_bias, None, None, None, None, None


def hand_down(
    gradient: Tensor, winners: Tensor, shape: tuple[int, ...], window: tuple[int, ...]
) -> Tensor:
    """The gradient of a bottom of this shape from that of the maxima, laid out as `winners`.

    `window` has height and width of kernel, stride and pad.
    """
    layout = layout_of(winners)
    result = _empty(shape, gradient.dtype, layout, gradient.device)
    grid, settings = _divide(layout, result, (shape, winners.shape), window)
    _hand_down[grid](gradient, winners, result, **settings)
    return result


def _empty(
    shape: tuple[int, ...], dtype: torch.dtype, layout: Layout, device: torch.device
) -> Tensor:
    memory_format = torch.channels_last if layout.last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)


def _divide(
    layout: Layout,
    target: Tensor,
    shapes: tuple[tuple[int, ...], tuple[int, ...]],
    window: tuple[int, ...],
) -> tuple[tuple[int, int], dict[str, Any]]:
    """The grid of programs for a target, and what they need to know of bottom and top.

    Planes of images whose channels are not innermost count as images of one channel.
    """
    channels = layout.channels if layout.last else 1
    pixels = target.numel() // channels
    grid = triton.cdiv(pixels, layout.height), triton.cdiv(channels, layout.columns)
    settings = dict(zip(("KH", "KW", "SH", "SW", "PH", "PW"), window, strict=True))
    settings |= {"ROWS": layout.height, "COLUMNS": layout.columns}
    settings |= {"pixels": pixels, "num_channels": channels}
    for name, shape in zip(("", "top_"), shapes, strict=True):
        settings |= {f"{name}height": shape[2], f"{name}width": shape[3]}
    return grid, settings
