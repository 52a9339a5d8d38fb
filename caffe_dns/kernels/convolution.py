"""Convolutions of few channels with stride 1, optionally fused with a pooling, and their gradients.

Tensor Cores need channels in multiples of eight: for others, cuDNN pads and converts blobs in
kernels of its own. Blobs and weights are channels-last here, so that what a row of a kernel
multiplies is contiguous. Loops use `while`: Triton prefetches in loops over `range`, four bytes at
a time, and the gradient of a weight took twice as long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.layout import LARGEST
from caffe_dns.kernels.max_pool import NOWHERE

Pair = tuple[int, int]

#: The least a side of a tile may be for Tensor Cores.
LEAST = 16
#: The most channels of the top in a tile.
MOST = 64
#: Pixels of a tile of the top, numbers of a window in hand at a time, and channels of the top.
ROWS, NUMBERS, OUTER = 64, 64, 32
#: Of the weight's gradient: pixels in hand at a time, numbers of a window to sum up for, and
#: programs that keep a large GPU busy.
SUMMED, COLUMNS, PROGRAMS = 64, 64, 256


@triton.jit
def _window(number, wide, KW: tl.constexpr, C: tl.constexpr):
    """Where the numbers of a window lie, counted from its first: in which row, how far in it, and
    in memory; `wide` is the length of the blob's rows."""
    row, along = number // (KW * C), number % (KW * C)
    return row, along, row * wide + along


@triton.jit
def _inside(y, x, row, along, height, width, C: tl.constexpr):
    """Whether numbers of windows that begin at (y, x) are in the image."""
    near_y, near_x = y + row, x * C + along
    return (near_y >= 0) & (near_y < height) & (near_x >= 0) & (near_x < width * C)


@triton.jit
def _convolve(
    bottom,
    weight,
    bias,
    top,
    winners,
    pixels,
    outer,
    height,
    width,
    top_height,
    top_width,
    pad_row,
    pad_column,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    ROWS: tl.constexpr,
    OUTER: tl.constexpr,
    NUMBERS: tl.constexpr,
    BACK: tl.constexpr,
):
    """A convolution, or the largest of each PH x PW neighbours in it and which that was.

    BACK takes the weight of a convolution from the top to the bottom, for the way back: its axes of
    channels change places, and its pixels are reversed.
    """
    MEMBERS: tl.constexpr = PH * PW
    PIXELS: tl.constexpr = ROWS // MEMBERS
    WINDOW: tl.constexpr = KH * KW * C
    rows = tl.arange(0, ROWS)
    member, pixel = rows % MEMBERS, tl.program_id(0) * PIXELS + rows // MEMBERS
    o = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    image = pixel // (top_height * top_width)
    y = pixel // top_width % top_height * PH + member // PW - pad_row
    x = pixel % top_width * PW + member % PW - pad_column
    begin = (image * height + y) * (width * C) + x * C
    total = tl.zeros((ROWS, OUTER), tl.float32)
    start = 0
    while start < WINDOW:
        number = start + tl.arange(0, NUMBERS)
        row, along, place = _window(number, width * C, KW, C)
        there = number < WINDOW
        inside = _inside(y[:, None], x[:, None], row[None, :], along[None, :], height, width, C)
        inside = inside & (pixel < pixels)[:, None] & there[None, :]
        values = tl.load(bottom + begin[:, None] + place[None, :], mask=inside, other=0.0)
        if BACK:
            spot = number % C * (KH * KW) + (KH * KW - 1 - number // C)
            spot = (spot * outer)[:, None] + o[None, :]
        else:
            spot = o[None, :] * WINDOW + number[:, None]
        factors = tl.load(weight + spot, mask=(o < outer)[None, :] & there[:, None], other=0.0)
        total = tl.dot(values, factors, total, input_precision="tf32")
        start += NUMBERS
    if MEMBERS > 1:
        values = tl.reshape(total, (PIXELS, MEMBERS, OUTER))
        # The first maximum counts; NaN is passed on.
        best = tl.max(tl.where(values != values, float("inf"), values), 1)
        is_best = (values == tl.reshape(best, (PIXELS, 1, OUTER))) | (values != values)
        numbers = tl.reshape(tl.arange(0, MEMBERS), (1, MEMBERS, 1))
        winner = tl.min(tl.where(is_best, numbers, MEMBERS), 1)
        lost = tl.max((values != values).to(tl.int32), 1) > 0
        total = tl.where(lost, float("nan"), best)
    if HAS_BIAS:
        total += tl.load(bias + o, mask=o < outer, other=0.0)[None, :]
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    known = (pixel < pixels)[:, None] & (o < outer)[None, :]
    place = pixel[:, None] * outer + o[None, :]
    if MEMBERS > 1:
        if RELU:
            winner = tl.where(total <= 0, NOWHERE, winner)
        tl.store(winners + place, winner.to(tl.uint8), mask=known)
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    tl.store(top + place, total, mask=known)


@triton.jit
def _weight(
    bottom,
    gradient,
    sums,
    pixels,
    outer,
    height,
    width,
    top_height,
    top_width,
    pad_row,
    pad_column,
    C: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    STEPS: tl.constexpr,
    OUTER: tl.constexpr,
    COLUMNS: tl.constexpr,
    SUMMED: tl.constexpr,
):
    """Sums of gradient[p, o] bottom[p + (t, u) - pad, i] over a share of the pixels p of the top,
    for each number (t, u, i) of a window, and after them those of gradient[p, o] alone."""
    number = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    o = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
    split = tl.program_id(2)
    there = number < KH * KW * C
    row, along, place = _window(number, width * C, KW, C)
    total = tl.zeros((OUTER, COLUMNS), tl.float32)
    alone = tl.zeros((OUTER,), tl.float32)
    step = 0
    while step < STEPS:
        pixel = (split * STEPS + step) * SUMMED + tl.arange(0, SUMMED)
        image = pixel // (top_height * top_width)
        y, x = pixel // top_width % top_height - pad_row, pixel % top_width - pad_column
        above = tl.load(
            gradient + pixel[None, :] * outer + o[:, None],
            mask=(pixel < pixels)[None, :] & (o < outer)[:, None],
            other=0.0,
        )
        inside = _inside(y[:, None], x[:, None], row[None, :], along[None, :], height, width, C)
        begin = (image * height + y) * (width * C) + x * C
        values = tl.load(
            bottom + begin[:, None] + place[None, :],
            mask=inside & (pixel < pixels)[:, None] & there[None, :],
            other=0.0,
        )
        total = tl.dot(above, values, total, input_precision="tf32")
        alone += tl.sum(above, 1)
        step += 1
    mine = sums + split * outer * (KH * KW * C + 1)
    tl.store(
        mine + o[:, None] * (KH * KW * C) + number[None, :],
        total,
        mask=(o < outer)[:, None] & there[None, :],
    )
    if tl.program_id(0) == 0:
        tl.store(mine + outer * (KH * KW * C) + o, alone, mask=o < outer)


def fits(*blobs: Tensor) -> bool:
    """Whether kernels can work on these images and weights: float32, where TF32 may be used, with
    channels innermost."""
    return torch.backends.cudnn.allow_tf32 and all(
        blob.dtype == torch.float32
        and 0 < blob.numel() <= LARGEST
        and blob.is_contiguous(memory_format=torch.channels_last)
        for blob in blobs
    )


def maxima(
    x: Tensor, w: Tensor, b: Tensor | None, pad: Pair, pool: Pair, size: Pair, *, relu: bool
) -> tuple[Tensor, Tensor]:
    """The largest of each `pool` neighbours of the top, after a bias and perhaps a ReLU, and which.

    `size` is how many there are. The windows lie side by side; their pixels are a power of two.
    """
    shape = (len(x), len(w), *size)
    top = torch.empty(shape, device=x.device, memory_format=torch.channels_last)
    winners = torch.empty_like(top, dtype=torch.uint8)
    _launch(x, w, top, w.shape[1:], pad, pool, winners=winners, bias=b, RELU=relu, BACK=False)
    return top, winners


def bottom_gradient(gradient: Tensor, x: Tensor, w: Tensor, pad: Pair) -> Tensor:
    """The gradient of x from that of the top."""
    result = torch.empty_like(x)
    rows, columns = w.shape[2:]
    window = (len(w), rows, columns)
    far = (rows - 1 - pad[0], columns - 1 - pad[1])
    _launch(
        gradient, w, result, window, far, (1, 1), winners=None, bias=None, RELU=False, BACK=True
    )
    return result


def _launch(
    x: Tensor,
    w: Tensor,
    top: Tensor,
    window: Sequence[int],
    pad: Pair,
    pool: Pair,
    *,
    winners: Tensor | None,
    bias: Tensor | None,
    **flags: bool,
) -> None:
    """Convolve x, with windows of so many channels, rows and columns, into a (pooled) top."""
    num, outer, *size = top.shape
    pixels, tile = num * size[0] * size[1], _at_most(OUTER, outer)
    _convolve[(triton.cdiv(pixels * pool[0] * pool[1], ROWS), triton.cdiv(outer, tile))](
        x,
        w,
        bias,
        top,
        winners,
        pixels,
        outer,
        *x.shape[2:],
        *size,
        *pad,
        HAS_BIAS=bias is not None,
        C=window[0],
        KH=window[1],
        KW=window[2],
        PH=pool[0],
        PW=pool[1],
        ROWS=ROWS,
        OUTER=tile,
        NUMBERS=_at_most(NUMBERS, math.prod(window)),
        **flags,
    )


def parameter_gradients(gradient: Tensor, x: Tensor, w: Tensor, pad: Pair) -> tuple[Tensor, Tensor]:
    """The gradients of w, in its layout, and of a bias, from that of the top."""
    (outer, channels, rows, columns), numbers = w.shape, w[0].numel()
    pixels = gradient.numel() // outer
    tile, width = _at_most(MOST, outer), _at_most(COLUMNS, numbers)
    blocks = triton.cdiv(numbers, width), triton.cdiv(outer, tile)
    steps = triton.cdiv(pixels, max(1, PROGRAMS // (blocks[0] * blocks[1])) * SUMMED)
    splits = triton.cdiv(pixels, steps * SUMMED)
    sums = torch.empty(splits, outer * (numbers + 1), device=x.device)
    _weight[(blocks[0], blocks[1], splits)](
        x,
        gradient,
        sums,
        pixels,
        outer,
        *x.shape[2:],
        *gradient.shape[2:],
        *pad,
        C=channels,
        KH=rows,
        KW=columns,
        STEPS=steps,
        OUTER=tile,
        COLUMNS=width,
        SUMMED=SUMMED,
    )
    along_weight, along_bias = add_up_splits(sums, w.dtype).split((outer * numbers, outer))
    return along_weight.as_strided(w.shape, w.stride()), along_bias


def _at_most(most: int, number: int) -> int:
    """The side of a tile for so many."""
    return min(most, max(LEAST, triton.next_power_of_2(number)))
