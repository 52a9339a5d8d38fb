"""The gradients of convolutions of few channels without a stride.

Matrix units want channels by the eight: cuDNN pads and converts blobs of others in kernels of its
own, and has tiles for larger images than the nets have that such convolutions are found in.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.layout import LARGEST

#: The least and the most channels in a tile.
LEAST, MOST = 16, 64
#: Pixels of a bottom that a program has in hand.
PIXELS = 32
#: Pixels of a top that a program has in hand at a time where it sums up, columns of the weight that
#: it does so for, and programs that keep a large GPU busy.
SUMMED, COLUMNS, PROGRAMS = 64, 64, 256


@triton.jit
def _bottom(
    gradient,
    weight,
    parts,
    pixels,
    inner,
    outer,
    height,
    width,
    top_height,
    top_width,
    gradient_image,
    gradient_channel,
    gradient_pixel,
    weight_outer,
    weight_inner,
    weight_row,
    weight_column,
    bottom_image,
    bottom_channel,
    bottom_pixel,
    pad_row,
    pad_column,
    KW: tl.constexpr,
    BLOCKS: tl.constexpr,
    PIXELS: tl.constexpr,
    INNER: tl.constexpr,
    OUTER: tl.constexpr,
):
    """parts[t, p, i] = sum of gradient[p - (t, u) + pad, o] weight[o, i, t, u] over o and u: what
    row t of the window gives."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    i = tl.program_id(1) * INNER + tl.arange(0, INNER)
    row = tl.program_id(2)
    image = pixel // (height * width)
    y, x = pixel // width % height, pixel % width
    from_y = y + pad_row - row
    total = tl.zeros((PIXELS, INNER), tl.float32)
    for step in tl.static_range(KW * BLOCKS):
        column = step // BLOCKS
        o = step % BLOCKS * OUTER + tl.arange(0, OUTER)
        from_x = x + pad_column - column
        inside = (from_y >= 0) & (from_y < top_height) & (from_x >= 0) & (from_x < top_width)
        place = image * gradient_image + (from_y * top_width + from_x) * gradient_pixel
        along = tl.load(
            gradient + place[:, None] + o[None, :] * gradient_channel,
            mask=(inside & (pixel < pixels))[:, None] & (o < outer)[None, :],
            other=0.0,
        )
        place = row * weight_row + column * weight_column
        factors = tl.load(
            weight + place + o[:, None] * weight_outer + i[None, :] * weight_inner,
            mask=(o < outer)[:, None] & (i < inner)[None, :],
            other=0.0,
        )
        total = tl.dot(along, factors, total, input_precision="tf32")
    place = image * bottom_image + (y * width + x) * bottom_pixel
    tl.store(
        parts + row * pixels * inner + place[:, None] + i[None, :] * bottom_channel,
        total,
        mask=(pixel < pixels)[:, None] & (i < inner)[None, :],
    )


@triton.jit
def _weight(
    bottom,
    gradient,
    sums,
    pixels,
    inner,
    outer,
    height,
    width,
    top_height,
    top_width,
    bottom_image,
    bottom_channel,
    bottom_pixel,
    gradient_image,
    gradient_channel,
    gradient_pixel,
    pad_row,
    pad_column,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STEPS: tl.constexpr,
    OUTER: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """Sums of gradient[p, o] bottom[p + (t, u) - pad, i] over a share of the pixels p of the top,
    for each column (i, t, u) of the weight."""
    number = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    o = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    split = tl.program_id(2)
    numbers = inner * KH * KW
    i, row, column = number // (KH * KW), number // KW % KH, number % KW
    total = tl.zeros((OUTER, COLUMNS), tl.float32)
    step = 0
    while step < STEPS:
        pixel = (split * STEPS + step) * SUMMED + tl.arange(0, SUMMED)
        image = pixel // (top_height * top_width)
        y, x = pixel // top_width % top_height, pixel % top_width
        place = image * gradient_image + (y * top_width + x) * gradient_pixel
        along = tl.load(
            gradient + place[None, :] + o[:, None] * gradient_channel,
            mask=(pixel < pixels)[None, :] & (o < outer)[:, None],
            other=0.0,
        )
        near_y = y[:, None] + (row - pad_row)[None, :]
        near_x = x[:, None] + (column - pad_column)[None, :]
        inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
        place = image[:, None] * bottom_image + (near_y * width + near_x) * bottom_pixel
        values = tl.load(
            bottom + place + i[None, :] * bottom_channel,
            mask=inside & (pixel < pixels)[:, None] & (number < numbers)[None, :],
            other=0.0,
        )
        total = tl.dot(along, values, total, input_precision="tf32")
        step += 1
    tl.store(
        sums + (split * outer + o)[:, None] * numbers + number[None, :],
        total,
        mask=(o < outer)[:, None] & (number < numbers)[None, :],
    )


def fits(*blobs: Tensor) -> bool:
    """Whether kernels can work on these: float32, where TF32 may be used, without gaps."""
    return torch.backends.cudnn.allow_tf32 and all(
        blob.dtype == torch.float32
        and 0 < blob.numel() <= LARGEST
        and (blob.is_contiguous() or blob.is_contiguous(memory_format=torch.channels_last))
        for blob in blobs
    )


def bottom_gradient(gradient: Tensor, x: Tensor, w: Tensor, pad: tuple[int, int]) -> Tensor:
    """The gradient of x, N x C x H x W, in its layout; w is M x C x KH x KW."""
    outer, inner, rows, columns = w.shape
    tile, depth = _side(inner), _side(outer)
    pixels = x.numel() // inner
    parts = torch.empty(rows, x.numel(), device=x.device)
    _bottom[(triton.cdiv(pixels, PIXELS), triton.cdiv(inner, tile), rows)](
        gradient,
        w,
        parts,
        pixels,
        inner,
        outer,
        *x.shape[2:],
        *gradient.shape[2:],
        *_strides(gradient),
        *w.stride(),
        *_strides(x),
        *pad,
        KW=columns,
        BLOCKS=triton.cdiv(outer, depth),
        PIXELS=PIXELS,
        INNER=tile,
        OUTER=depth,
    )
    return add_up_splits(parts, x.dtype).as_strided(x.shape, x.stride())


def weight_gradient(gradient: Tensor, x: Tensor, w: Tensor, pad: tuple[int, int]) -> Tensor:
    """The gradient of w, contiguous."""
    outer, inner, rows, columns = w.shape
    pixels, numbers = gradient.numel() // outer, w[0].numel()
    tile = _side(outer)
    blocks = triton.cdiv(numbers, COLUMNS) * triton.cdiv(outer, tile)
    steps = triton.cdiv(pixels, max(1, PROGRAMS // blocks) * SUMMED)
    splits = triton.cdiv(pixels, steps * SUMMED)
    sums = torch.empty(splits, outer * numbers, device=x.device)
    _weight[(triton.cdiv(numbers, COLUMNS), triton.cdiv(outer, tile), splits)](
        x,
        gradient,
        sums,
        pixels,
        inner,
        outer,
        *x.shape[2:],
        *gradient.shape[2:],
        *_strides(x),
        *_strides(gradient),
        *pad,
        KH=rows,
        KW=columns,
        STEPS=steps,
        OUTER=tile,
        COLUMNS=COLUMNS,
        SUMMED=SUMMED,
    )
    return add_up_splits(sums, w.dtype).view(w.shape)


def _side(channels: int) -> int:
    """How many channels a tile has."""
    return min(MOST, max(LEAST, triton.next_power_of_2(channels)))


def _strides(blob: Tensor) -> tuple[int, int, int]:
    """From image to image, from channel to channel, from pixel to pixel."""
    return blob.stride(0), blob.stride(1), blob.stride(3)
