"""Depthwise convolutions between two BatchNorms, fused with most of the BatchNorms' passes.

A depthwise convolution multiplies so little that its time is that of the memory accesses. So it
normalises its bottom while loading it, which then is never written, and sums up its top while
storing it. In the backward pass, one kernel makes the top's gradient from the one above its
BatchNorm, propagates it, and sums up what the weight and the BatchNorm below need.

Blobs are channels-last. A program walks down some rows of images, two neighbouring pixels to a
patch, with the rows that a window covers in registers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.batch_norm import Normalization, line
from caffe_dns.kernels.channel_statistics import Sums, add_up_splits
from caffe_dns.kernels.depthwise_gradients import gradients
from caffe_dns.kernels.layout import LARGEST
from caffe_dns.kernels.patches import SIZES, activation, patches, place, taps

#: The side of the window, and how many numbers a weight has for a channel.
SIDE, TAPS = 3, 9
#: The strides there are kernels for.
STRIDES = (1, 2)
#: The types that there are kernels for.
TYPES = (torch.float32, torch.bfloat16)
#: The most channels in a tile, and how many numbers a program has of each pixel of its patches,
#: forwards and backwards; its warps, and for how many rows it has room, loading ahead.
CHANNELS, PLACES, BACK_PLACES, WARPS, STAGES, BACK_STAGES = 64, 512, 256, 4, 3, 3
#: Programs that keep a large GPU busy until the last one ends.
PROGRAMS = 4096
#: The fewest rows of a program: it loads two more.
LEAST_ROWS = 7


@triton.jit
def _pixel(x, image, row, column, size, channels, own, RELU: tl.constexpr):
    inside, where = place(image, row, column, size, channels)
    value = tl.load(x + where, mask=inside, other=0.0).to(tl.float32)
    return activation(value, inside, own, RELU)


@triton.jit
def _row(x, image, row, column, size, channels, own, RELU: tl.constexpr, STRIDE: tl.constexpr):
    """The pixels of a row that two neighbours of the top are made of: four, or five."""
    left = column * STRIDE - 1
    a = _pixel(x, image, row, left, size, channels, own, RELU)
    b = _pixel(x, image, row, left + 1, size, channels, own, RELU)
    c = _pixel(x, image, row, left + 2, size, channels, own, RELU)
    d = _pixel(x, image, row, left + 3, size, channels, own, RELU)
    e = _pixel(x, image, row, left + 4, size, channels, own, RELU) if STRIDE == 2 else d
    return a, b, c, d, e


@triton.jit
def _weigh(pixels, taps, STRIDE: tl.constexpr):
    """A row's part in two neighbours of the top."""
    a, b, c, d, e = pixels
    left, middle, right = taps
    first = a * left + b * middle + c * right
    second = b * left + c * middle + d * right
    if STRIDE == 2:
        second = c * left + d * middle + e * right
    return first, second


@triton.jit
def _store(y, value, pivot, image, row, column, size, channels):
    """Store a pixel of each patch; returns how far those inside are from the pivot."""
    value = value.to(y.dtype.element_ty)
    inside, where = place(image, row, column, size, channels)
    tl.store(y + where, value, mask=inside)
    return tl.where(inside, value.to(tl.float32) - pivot, 0.0)


@triton.jit
def _sample(
    x, w, num_patches, across, size, top_size, channels, own,
    RELU: tl.constexpr, STRIDE: tl.constexpr, PATCHES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The mean of the first patches in a row in the middle."""
    patch = tl.arange(0, PATCHES)[:, None]
    image = tl.where(patch < num_patches, patch // across, -1)
    column, row = patch % across * 2, top_size[0] // 2
    first = tl.zeros((PATCHES, COLUMNS), tl.float32)
    second = tl.zeros((PATCHES, COLUMNS), tl.float32)
    for t in tl.static_range(3):
        near = row * STRIDE - 1 + t
        pixels = _row(x, image, near, column, size, channels, own, RELU, STRIDE)
        one, two = _weigh(pixels, taps(w, channels, t), STRIDE)
        first += one
        second += two
    both = (image >= 0) & (column + 1 < top_size[1])
    first, second = tl.where(image >= 0, first, 0.0), tl.where(both, second, 0.0)
    pixels = tl.sum((image >= 0).to(tl.float32) + both.to(tl.float32), 0)
    return tl.sum(first + second, 0)[None, :] / pixels[None, :]


@triton.jit(do_not_specialize=SIZES)
def _convolve(
    x, w, y, means, inverse_stds, factors, shifts, pivots, sums,
    num_patches, across, height, width, top_height, top_width, num_channels, rows_each,
    AFFINE: tl.constexpr, RELU: tl.constexpr, STRIDE: tl.constexpr,
    PATCHES: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Some rows of the top, and the sums of y - pivot and of its square over them."""
    split, channels, image, patch, begin, end = patches(
        num_patches, across, num_channels, top_height, rows_each, PATCHES, COLUMNS
    )
    column = patch * 2
    own = line(means, inverse_stds, factors, shifts, channels, num_channels, AFFINE)
    size, top_size = (height, width, num_channels), (top_height, top_width, num_channels)
    taps0, taps1, taps2 = taps(w, channels, 0), taps(w, channels, 1), taps(w, channels, 2)
    pivot = _sample(
        x, w, num_patches, across, size, top_size, channels, own, RELU, STRIDE, PATCHES, COLUMNS
    )
    total = tl.zeros((PATCHES, COLUMNS), tl.float32)
    squares = tl.zeros((PATCHES, COLUMNS), tl.float32)
    # What the rows above bring to this row of the top, and to the next.
    above = _row(x, image, begin * STRIDE - 1, column, size, channels, own, RELU, STRIDE)
    first, second = _weigh(above, taps0, STRIDE)
    if STRIDE == 1:
        middle = _row(x, image, begin, column, size, channels, own, RELU, STRIDE)
        more, more_second = _weigh(middle, taps1, STRIDE)
        first, second = first + more, second + more_second
        later, later_second = _weigh(middle, taps0, STRIDE)
    for row in tl.range(begin, end, num_stages=STAGES):
        if STRIDE == 2:
            middle = _row(x, image, row * STRIDE, column, size, channels, own, RELU, STRIDE)
            more, more_second = _weigh(middle, taps1, STRIDE)
            first, second = first + more, second + more_second
        below = _row(x, image, row * STRIDE + 1, column, size, channels, own, RELU, STRIDE)
        more, more_second = _weigh(below, taps2, STRIDE)
        near = _store(y, first + more, pivot, image, row, column, top_size, channels)
        far = _store(y, second + more_second, pivot, image, row, column + 1, top_size, channels)
        total, squares = total + near + far, squares + near * near + far * far
        first, second = _weigh(below, taps0, STRIDE)
        if STRIDE == 1:
            more, more_second = _weigh(below, taps1, STRIDE)
            first, later = later + more, first
            second, later_second = later_second + more_second, second
    place = sums + 2 * split * num_channels + channels
    tl.store(place, tl.sum(total, 0)[None, :])
    tl.store(place + num_channels, tl.sum(squares, 0)[None, :])
    if split == 0:
        tl.store(pivots + channels, pivot)


def fits(x: Tensor, weight: Tensor, stride: int) -> bool:
    """Whether the kernels can convolve images x, with their channels innermost, and it pays.

    The weight is C x 1 x 3 x 3, and images are padded by a pixel.
    """
    return (
        x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.shape == (x.shape[1], 1, SIDE, SIDE)
        and x.dtype == weight.dtype in TYPES
        and stride in STRIDES
        and x.shape[1] % 8 == 0
        and 0 < x.numel() <= LARGEST
    )


@dataclass(frozen=True)
class Depthwise:
    """A convolution of relu of normalised images by 3x3 with a pad of 1, each channel by itself.

    `bottom` is what becomes of the images, `weight` C x 1 x 3 x 3.
    """

    bottom: Normalization
    weight: Tensor
    stride: int

    @property
    def _size(self) -> tuple[int, int]:
        """Rows and columns of the top."""
        height, width = self.bottom.x.shape[2:]
        return (height - 1) // self.stride + 1, (width - 1) // self.stride + 1

    def _divide(self, rows: int, across: int, places: int) -> tuple[int, dict[str, Any]]:
        """How many splits and what the kernels need to know, for so many rows of patches."""
        num, channels, height, width = self.bottom.x.shape
        top_height, top_width = self._size
        columns = min(CHANNELS, channels & -channels)
        at_once = places // columns
        strips = triton.cdiv(num * across, at_once)
        segments = triton.cdiv(PROGRAMS * columns, strips * channels)
        rows_each = max(min(LEAST_ROWS, rows), triton.cdiv(rows, segments))
        splits = strips * triton.cdiv(rows, rows_each)
        return splits, {
            "num_patches": num * across,
            "across": across,
            "height": height,
            "width": width,
            "top_height": top_height,
            "top_width": top_width,
            "num_channels": channels,
            "rows_each": rows_each,
            "AFFINE": self.bottom.factor is not None,
            "RELU": self.bottom.relu,
            "STRIDE": self.stride,
            "PATCHES": at_once,
            "COLUMNS": columns,
        }

    def top(self) -> tuple[Tensor, Sums]:
        """The top, and what is added up of it."""
        x, (height, width) = self.bottom.x, self._size
        splits, settings = self._divide(height, triton.cdiv(width, 2), PLACES)
        channels = x.shape[1]
        y = torch.empty(
            (len(x), channels, height, width),
            dtype=x.dtype, device=x.device, memory_format=torch.channels_last,
        )  # fmt: skip
        pivot, sums = (
            torch.empty(shape, device=x.device) for shape in ((channels,), (splits, 2, channels))
        )
        _convolve[(splits * (channels // settings["COLUMNS"]),)](
            x, self.weight, y, *self.bottom.line, pivot, sums, **settings, STAGES=STAGES,
            num_warps=WARPS,
        )  # fmt: skip
        return y, Sums(pivot, sums)

    def gradients(
        self, top: Normalization, gradient: Tensor, along: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those of what was convolved, of the weight, and of the bottom's shift and factor.

        `gradient` is that of what becomes of the top, `along` are those of its shift and factor.
        """
        x, stride = self.bottom.x, self.stride
        channels, height, width = x.shape[1:]
        rows, across = triton.cdiv(height, stride), triton.cdiv(width, 2)
        splits, settings = self._divide(rows, across, BACK_PLACES)
        result = torch.empty_like(x)
        sums = torch.empty((splits, (2 + TAPS) * channels), device=x.device)
        gradients[(splits * (channels // settings["COLUMNS"]),)](
            x,
            self.weight,
            top.x,
            gradient,
            result,
            sums,
            *self.bottom.line,
            *top.line,
            *along,
            count=top.layout.rows,
            TOP_AFFINE=top.factor is not None,
            TOP_RELU=top.relu,
            **settings,
            STAGES=BACK_STAGES,
            num_warps=WARPS,
        )
        shift, factor, weight = add_up_splits(sums, torch.float32).split(
            (channels, channels, TAPS * channels)
        )
        return result, weight.view(self.weight.shape).to(self.weight.dtype), shift, factor
