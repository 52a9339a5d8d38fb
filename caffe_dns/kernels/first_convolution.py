"""The first convolution of a net with its bias and a ReLU, and the gradients of its parameters.

Images have few channels, its top many large planes. What takes time is writing the top and reading
the gradient, each once here. Images are read as they are, whatever their layout and type.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.layout import LARGEST, slice_of

Pair = tuple[int, int]

#: The most numbers in a window, and channels of the top, that a program has in hand.
MOST_NUMBERS, MOST_OUTPUTS = 64, 128
#: The least side of a tile for Tensor Cores.
LEAST = 16
#: Pixels of the top in a program of the way up; on the way back, pixels at a time, programs that
#: keep a large GPU busy, and how many steps Triton loads ahead (measured on an H200: of images in
#: float32, one by one to be rounded to bfloat16, that takes three times as long).
ROWS, SUMMED, PROGRAMS = 128, 128, 528
STAGES = {torch.float32: 2, torch.bfloat16: 1}


@triton.jit
def _rounded(values):
    """Float32 as the nearest numbers of TF32, whose units cut digits off; others as they are."""
    if values.dtype == tl.float32:
        bits = values.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
        values = tl.where(values == values, nearest, values)
    return values


@triton.jit
def _windows(
    images,
    pixel,
    known,
    number,
    height,
    width,
    top_height,
    top_width,
    pad_row,
    pad_column,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
):
    """The numbers (row, column, channel) of the windows of these pixels, zeros beyond images."""
    row, column, channel = number // (KW * C), number // C % KW, number % C
    image = pixel // (top_height * top_width)
    y = pixel // top_width % top_height - pad_row
    x = pixel % top_width - pad_column
    near_y, near_x = y[:, None] + row[None, :], x[:, None] + column[None, :]
    inside = (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width)
    inside = inside & known[:, None] & (number < KH * KW * C)[None, :]
    begin = image * image_stride + y * row_stride + x * column_stride
    place = channel * channel_stride + row * row_stride + column * column_stride
    return tl.load(images + begin[:, None] + place[None, :], mask=inside, other=0.0)


@triton.jit
def _forward(
    images,
    weight,
    bias,
    top,
    pixels,
    outer,
    height,
    width,
    top_height,
    top_width,
    pad_row,
    pad_column,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    ROWS: tl.constexpr,
    OUTER: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    pixel = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    known = pixel < pixels
    o, number = tl.arange(0, OUTER), tl.arange(0, NUMBERS)
    values = _windows(
        images, pixel, known, number, height, width, top_height, top_width, pad_row, pad_column,
        image_stride, channel_stride, row_stride, column_stride, C, KH, KW,
    )  # fmt: skip
    there = (o < outer)[None, :] & (number < KH * KW * C)[:, None]
    spot = o[None, :] * (KH * KW * C) + number[:, None]
    factors = tl.load(weight + spot, mask=there, other=0.0)
    values = _rounded(values.to(factors.dtype))
    total = tl.dot(values, _rounded(factors), input_precision="tf32")
    total += tl.load(bias + o, mask=o < outer, other=0.0).to(tl.float32)[None, :]
    place = pixel[:, None] * outer + o[None, :]
    # NaN stays NaN.
    total = tl.where(total < 0, 0.0, total)
    tl.store(top + place, total, mask=known[:, None] & (o < outer)[None, :])


@triton.jit
def _backward(
    images,
    top,
    gradients,
    wide,
    sums,
    pixels,
    outer,
    height,
    width,
    top_height,
    top_width,
    pad_row,
    pad_column,
    image_stride,
    channel_stride,
    row_stride,
    column_stride,
    STEPS: tl.constexpr,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SUMMED: tl.constexpr,
    STAGES: tl.constexpr,
    OUTER: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    """Sums over a share of the pixels of the gradient below the ReLU, times each number of a
    pixel's window, and after them those of the gradient alone.

    The gradient above is in a blob of `wide` channels.
    """
    split = tl.program_id(0)
    o, number = tl.arange(0, OUTER), tl.arange(0, NUMBERS)
    total = tl.zeros((OUTER, NUMBERS), tl.float32)
    alone = tl.zeros((SUMMED, OUTER), tl.float32)
    for step in tl.range(0, STEPS, num_stages=STAGES):
        pixel = (split * STEPS + step) * SUMMED + tl.arange(0, SUMMED)
        known = pixel < pixels
        here = known[:, None] & (o < outer)[None, :]
        gradient = tl.load(gradients + pixel[:, None] * wide + o[None, :], mask=here, other=0.0)
        value = tl.load(top + pixel[:, None] * outer + o[None, :], mask=here, other=0.0)
        gradient = tl.where(value > 0, gradient, 0.0)
        values = _windows(
            images, pixel, known, number, height, width, top_height, top_width, pad_row,
            pad_column, image_stride, channel_stride, row_stride, column_stride, C, KH, KW,
        )  # fmt: skip
        values = _rounded(values.to(gradient.dtype))
        factors = tl.trans(_rounded(gradient))
        total = tl.dot(factors, values, total, input_precision="tf32")
        alone += gradient.to(tl.float32)
    mine = sums + split * outer * (KH * KW * C + 1)
    there = (o < outer)[:, None] & (number < KH * KW * C)[None, :]
    tl.store(mine + o[:, None] * (KH * KW * C) + number[None, :], total, mask=there)
    tl.store(mine + outer * (KH * KW * C) + o, tl.sum(alone, 0), mask=o < outer)


def fits(images: Tensor, w: Tensor, pad: Pair) -> bool:
    """Whether the kernels can work on these images and this weight, whose type the top will have.

    Images of any strides, float32 or bfloat16; a weight with its channels innermost, bfloat16, or
    float32 where TF32 may be used.
    """
    types = [torch.bfloat16, *([torch.float32] if torch.backends.cudnn.allow_tf32 else [])]
    num, _, *size = images.shape
    places = num * len(w) * (size[0] + 2 * pad[0]) * (size[1] + 2 * pad[1])
    return (
        w.dtype in types
        and images.dtype in (torch.float32, torch.bfloat16)
        and w[0].numel() <= MOST_NUMBERS
        and len(w) <= MOST_OUTPUTS
        and w.is_contiguous(memory_format=torch.channels_last)
        and 0 < max(places, images.numel()) <= LARGEST
    )


class FirstConvolution(torch.autograd.Function):
    """relu(convolution of images with w + b), N x O x rows x columns in the type of w.

    `pad` is (height, width); there is neither stride nor dilation. No gradient goes to the images.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, w: Tensor, b: Tensor, pad: Pair) -> Tensor:
        (num, _, *size), (outer, _, *kernel) = images.shape, w.shape
        size = [size[axis] + 2 * pad[axis] - kernel[axis] + 1 for axis in (0, 1)]
        shape, last = (num, outer, *size), torch.channels_last
        top = torch.empty(shape, dtype=w.dtype, device=w.device, memory_format=last)
        pixels = num * size[0] * size[1]
        _forward[(triton.cdiv(pixels, ROWS),)](
            images, w, b, top, pixels, **_settings(images, w, top, pad), ROWS=ROWS, num_warps=4
        )
        ctx.save_for_backward(images, w, top)
        ctx.pad, ctx.bias_type = pad, b.dtype
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, Tensor, None]:
        images, w, top = ctx.saved_tensors
        gradient, wide = slice_of(gradients[0], like=top)
        pixels, outer = top.numel() // len(w), len(w)
        steps = triton.cdiv(pixels, PROGRAMS * SUMMED)
        splits = triton.cdiv(pixels, steps * SUMMED)
        sums = torch.empty(splits, w.numel() + outer, device=w.device)
        _backward[(splits,)](
            images,
            top,
            gradient,
            wide,
            sums,
            pixels,
            **_settings(images, w, top, ctx.pad),
            STEPS=steps,
            SUMMED=SUMMED,
            STAGES=STAGES[w.dtype],
            num_warps=4,
        )
        along_w, along_b = add_up_splits(sums, torch.float32).split((w.numel(), outer))
        along_w = along_w.as_strided(w.shape, w.stride()).to(w.dtype)
        return None, along_w, along_b.to(ctx.bias_type), None


def _settings(images: Tensor, w: Tensor, top: Tensor, pad: Pair) -> dict[str, Any]:
    """What kernels know of images, weight and top."""
    (outer, channels, *kernel), strides = w.shape, images.stride()
    return {
        "outer": outer,
        "height": images.shape[2],
        "width": images.shape[3],
        "top_height": top.shape[2],
        "top_width": top.shape[3],
        "pad_row": pad[0],
        "pad_column": pad[1],
        "image_stride": strides[0],
        "channel_stride": strides[1],
        "row_stride": strides[2],
        "column_stride": strides[3],
        "C": channels,
        "KH": kernel[0],
        "KW": kernel[1],
        "OUTER": max(LEAST, triton.next_power_of_2(outer)),
        "NUMBERS": max(LEAST, triton.next_power_of_2(w[0].numel())),
    }
