"""The gradient of the weight of a convolution of few channels without a stride.

Matrix units want channels by the eight: cuDNN pads and converts blobs of others in kernels of its
own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.layout import LARGEST

#: The least and the most channels of the top in a tile.
LEAST, MOST = 16, 64
#: Pixels of a top that a program has in hand at a time, columns of the weight that it sums up for,
#: and programs that keep a large GPU busy.
SUMMED, COLUMNS, PROGRAMS = 64, 64, 256


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


def weight_gradient(gradient: Tensor, x: Tensor, w: Tensor, pad: tuple[int, int]) -> Tensor:
    """The gradient of w, M x C x KH x KW, contiguous; x is N x C x H x W."""
    outer, inner, rows, columns = w.shape
    pixels, numbers = gradient.numel() // outer, w[0].numel()
    tile = min(MOST, max(LEAST, triton.next_power_of_2(outer)))
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


def _strides(blob: Tensor) -> tuple[int, int, int]:
    """From image to image, from channel to channel, from pixel to pixel."""
    # The stride of an axis of one element says nothing.
    return blob.stride(0), blob.stride(1), blob.stride(3 if blob.shape[3] > 1 else 2)
