"""Gradients of convolutions' weights for TF32, from factors in half precision, summed in float32.

A number of half precision has TF32's 10 bits behind its first: in a blob whose largest number is
brought to 2^14, all do that are more than 2^-28 of that. Matrix units multiply them twice as fast,
and read them in any order: those of TF32 they read along the sum only, and a sum over pixels goes
across channels. Rounded, images get a gap of zeros behind each row and each image, so that a step
within a window is as far everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from caffe_dns.kernels.channel_statistics import add_up_splits
from caffe_dns.kernels.layout import LARGEST

Pair = tuple[int, int]

#: The first generation of NVIDIA's GPUs that copies tiles to shared memory by itself, and how many
#: bytes of that a program takes.
CAPABILITY, SHARED = (9, 0), 147_512
#: How many programs look for the largest number of a blob, how many numbers at a time, and from how
#: many tiles ahead on these are on their way.
SHARES, NUMBERS, AHEAD = 256, 4096, 4
#: How many numbers a program rounds at a time, and the most channels of these.
ROUNDED, CHANNELS = 4096, 128
#: The most numbers that are rounded before they are multiplied: of a part of the images.
MOST = 1 << 28
#: What the number of channels is a multiple of: rows begin where 16 bytes do.
ALIGNMENT = 8
#: The most programs for each that runs at a time, and how many turns one's beginning takes.
ROUNDS, BEGINNING = 8, 4


@triton.jit
def _find_largest(
    gradient, x, largest, gradient_numbers, x_numbers, NUMBERS: tl.constexpr, AHEAD: tl.constexpr
):
    """The largest magnitude of each share of a blob, the gradient or x."""
    share, shares = tl.program_id(0), tl.num_programs(0)
    blob, numbers = gradient, gradient_numbers
    if tl.program_id(1) == 1:
        blob, numbers = x, x_numbers
    most = tl.zeros((NUMBERS,), tl.float32)
    for begin in tl.range(share * NUMBERS, numbers, shares * NUMBERS, num_stages=AHEAD):
        places = begin + tl.arange(0, NUMBERS)
        most = tl.maximum(most, tl.abs(tl.load(blob + places, mask=places < numbers, other=0.0)))
    tl.store(largest + tl.program_id(1) * shares + share, tl.max(most))


@triton.jit
def _exponent(largest, SHARES: tl.constexpr):
    """By which power of 2 a blob's numbers are multiplied before they are rounded."""
    most = tl.max(tl.load(largest + tl.arange(0, SHARES)))
    # 127 is added to exponents; those of the least and of infinity are as good as others.
    exponent = (most.to(tl.int32, bitcast=True) >> 23) & 255
    return 14 + 127 - tl.minimum(tl.maximum(exponent, 15), 254)


@triton.jit
def _power(exponent):
    """2 to a power from -126 to 127."""
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _round(
    gradient,
    x,
    rounded_gradient,
    rounded_x,
    largest,
    rows,
    outer,
    channels,
    height,
    width,
    gap_row,
    gap_column,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of one of the blobs, scaled and rounded, with gaps."""
    blob, result, count = gradient, rounded_gradient, outer
    if tl.program_id(2) == 1:
        blob, result, count, largest = x, rounded_x, channels, largest + SHARES
    scale = _power(_exponent(largest, SHARES))
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    across, down = width + gap_column, height + gap_row
    i, j, image = row // across % down, row % across, row // across // down
    known = (row < rows) & (i < height) & (j < width)
    channel = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    there = (channel < count)[None, :]
    pixel = (image * height + i) * width + j
    values = tl.load(
        blob + pixel[:, None] * count + channel[None, :], mask=known[:, None] & there, other=0.0
    )
    place = row[:, None] * count + channel[None, :]
    tl.store(result + place, (values * scale).to(tl.float16), mask=(row < rows)[:, None] & there)


@triton.jit
def _multiply(
    gradient,
    x,
    largest,
    sums,
    outer,
    channels,
    across,
    pad_row,
    pad_column,
    STEPS,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SPOTS: tl.constexpr,
    SHARES: tl.constexpr,
    OUTER: tl.constexpr,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    STAGES: tl.constexpr,
    ADD: tl.constexpr,
):
    """Sums over a share of the rows, for some spots in the window, of a tile of O x C products."""
    groups: tl.constexpr = KH * KW // SPOTS
    first = tl.program_id(0) % groups * SPOTS
    tile, blocks = tl.program_id(0) // groups, tl.cdiv(channels, CHANNELS)
    first_o, first_c = tile // blocks * OUTER, tile % blocks * CHANNELS
    begin = tl.program_id(1) * STEPS * PIXELS
    totals = ()
    for _ in tl.static_range(SPOTS):
        totals += (tl.zeros((OUTER, CHANNELS), tl.float32),)  # type: ignore[assignment]
    for step in tl.range(0, STEPS, num_stages=STAGES):
        row = begin + step * PIXELS
        # Beyond the first and the last row there are zeros.
        left = gradient.load([row, first_o]).T
        grown = ()
        for i in tl.static_range(SPOTS):
            spot = first + i
            distance = (spot // KW - pad_row) * across + spot % KW - pad_column
            right = x.load([row + distance, first_c])
            grown += (tl.dot(left, right, totals[i]),)  # type: ignore[assignment]
        totals = grown
    o, c = first_o + tl.arange(0, OUTER), first_c + tl.arange(0, CHANNELS)
    inside = (o < outer)[:, None] & (c < channels)[None, :]
    exponent = -_exponent(largest, SHARES) - _exponent(largest + SHARES, SHARES)
    half = exponent // 2
    place = sums + ((tl.program_id(1) * outer + o)[:, None] * (KH * KW) + first) * channels
    for i in tl.static_range(SPOTS):
        total, mine = totals[i] * _power(half) * _power(exponent - half), place + i * channels
        if ADD:
            total += tl.load(mine + c[None, :], mask=inside, other=0.0)
        tl.store(mine + c[None, :], total, mask=inside)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _has_room(device: torch.device) -> bool:
    """Whether the device can copy tiles by itself, and has room for them."""
    if device.type != "cuda":
        return True
    properties = torch.cuda.get_device_properties(device)
    capability = properties.major, properties.minor
    shared = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
    return capability >= CAPABILITY and shared >= SHARED


def fits(gradient: Tensor, x: Tensor, w: Tensor, pad: Pair) -> bool:
    """Whether the kernels can do it, for a convolution without stride, dilation and groups.

    Blobs are float32, N x channels x rows x columns with the channels innermost, the top is as
    high and wide as x, and TF32 may be used.
    """
    height, width = x.shape[2] + pad[0], x.shape[3] + pad[1]
    last = torch.channels_last
    return (
        torch.backends.cudnn.allow_tf32
        and all(blob.dtype == torch.float32 for blob in (gradient, x, w))
        and tuple(w.shape[2:]) == (2 * pad[0] + 1, 2 * pad[1] + 1)
        and gradient.shape[2:] == x.shape[2:]
        and all(blob.is_contiguous(memory_format=last) for blob in (gradient, x))
        and not any(channels % ALIGNMENT for channels in w.shape[:2])
        and len(x) > 0
        and height * width * max(w.shape[:2]) <= LARGEST // 2
        and _has_room(x.device)
    )


def weight_gradient(gradient: Tensor, x: Tensor, w: Tensor, pad: Pair) -> Tensor:
    """The gradient of w, O x C x rows x columns with the channels innermost, of blobs that fit.

    `gradient` is that of the top; `pad` is (height, width).
    """
    outer, channels, *kernel = w.shape
    rows = (x.shape[2] + pad[0]) * (x.shape[3] + pad[1])
    parts = min(len(x), triton.cdiv(len(x) * rows * (outer + channels), MOST))
    images = triton.cdiv(len(x), parts)
    way = _way(outer, channels, (kernel[0], kernel[1]))
    tiles = triton.cdiv(outer, way.outer) * triton.cdiv(channels, way.channels)
    tiles *= math.prod(kernel) // way.spots
    turns = triton.cdiv(images * rows, way.pixels)
    splits = _splits(turns, tiles, way.resident * _multiprocessors(x.device))
    sums = torch.empty(splits, w.numel(), device=x.device)
    for part, pair in enumerate(zip(gradient.split(images), x.split(images), strict=True)):
        largest, factors = _scaled(*pair, pad)
        _multiply[(tiles, splits)](
            TensorDescriptor.from_tensor(factors[0], [way.pixels, way.outer]),
            TensorDescriptor.from_tensor(factors[1], [way.pixels, way.channels]),
            largest,
            sums,
            outer,
            channels,
            x.shape[3] + pad[1],
            *pad,
            triton.cdiv(turns, splits),
            KH=kernel[0],
            KW=kernel[1],
            SPOTS=way.spots,
            SHARES=SHARES,
            OUTER=way.outer,
            CHANNELS=way.channels,
            PIXELS=way.pixels,
            STAGES=way.stages,
            ADD=part > 0,
            num_warps=way.warps,
        )
    total = add_up_splits(sums, torch.float32)
    return total.view(outer, *kernel, channels).permute(0, 3, 1, 2)


def _scaled(gradient: Tensor, x: Tensor, pad: Pair) -> tuple[Tensor, list[Tensor]]:
    """What is the largest in shares of both, and both, scaled and rounded: rows x channels."""
    num, outer, height, width = gradient.shape
    channels, rows = x.shape[1], num * (height + pad[0]) * (width + pad[1])
    largest = torch.empty(2, SHARES, device=x.device)
    _find_largest[(SHARES, 2)](
        gradient, x, largest, gradient.numel(), x.numel(), NUMBERS=NUMBERS, AHEAD=AHEAD
    )
    rounded = [
        torch.empty(rows, count, dtype=torch.float16, device=x.device)
        for count in (outer, channels)
    ]
    most = max(outer, channels)
    columns = min(CHANNELS, triton.next_power_of_2(most))
    height_of_tile = ROUNDED // columns
    _round[(triton.cdiv(rows, height_of_tile), triton.cdiv(most, columns), 2)](
        gradient,
        x,
        *rounded,
        largest,
        rows,
        outer,
        channels,
        height,
        width,
        *pad,
        SHARES=SHARES,
        ROWS=height_of_tile,
        COLUMNS=columns,
        num_warps=8,
    )
    return largest, rounded


@dataclass(frozen=True)
class Way:
    """How many spots, outputs, channels and pixels a program has in hand, and how it does that."""

    spots: int
    outer: int
    channels: int
    pixels: int
    warps: int
    stages: int
    #: How many programs a multiprocessor has room for.
    resident: int


def _way(outer: int, channels: int, kernel: Pair) -> Way:
    """How to divide a weight of so many outputs and channels: the best of some on an H200."""
    if channels <= 64:
        # A tile of the gradient is multiplied by those of a row of the window.
        spots = kernel[1] if kernel[1] in (1, 3) else 1
        if outer <= 64:
            return Way(spots, 64, 64, 64, 4, 3, 2)
        return Way(spots, 128, 64, 64, 8, 3, 1)
    if channels > 128:
        return Way(1, 128 if outer > 64 else 64, 256, 64, 8, 3, 1)
    if outer > 128:
        return Way(1, 256, 128, 64, 8, 3, 1)
    return Way(1, 128 if outer > 64 else 64, 128, 64, 8, 3, 2)


@cache
def _splits(turns: int, tiles: int, slots: int) -> int:
    """Among how many programs the turns of each tile are divided, of which so many run at a time.

    So that all are done as early as may be, those included that come last.
    """
    most = min(turns, triton.cdiv(ROUNDS * slots, tiles))
    return min(
        range(1, most + 1),
        key=lambda splits: (
            triton.cdiv(tiles * splits, slots) * (triton.cdiv(turns, splits) + BEGINNING)
        ),
    )
