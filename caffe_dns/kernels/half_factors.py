"""Converts blobs to half precision, as factors in place of TF32's.

Half precision has 10 bits of mantissa, as TF32 has. If a blob is scaled so that its largest value
is 2^14, all values above 2^-28 of that keep these bits. Images get a gap of zeros after each row
and each image, so that a step within a window has the same length everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

Pair = tuple[int, int]

#: How many programs look for the largest number of a blob, how many numbers at a time, and from how
#: many tiles ahead on these are on their way.
SHARES, NUMBERS, AHEAD = 256, 4096, 4
#: How many numbers a program rounds at a time, and the most channels of these.
ROUNDED, CHANNELS = 4096, 128


@triton.jit
def _find_largest(
    first,
    second,
    largest,
    first_numbers,
    second_numbers,
    NUMBERS: tl.constexpr,
    AHEAD: tl.constexpr,
):
    """The largest magnitude of each share of one of the blobs."""
    share, shares = tl.program_id(0), tl.num_programs(0)
    blob, numbers = first, first_numbers
    if tl.program_id(1) == 1:
        blob, numbers = second, second_numbers
    most = tl.zeros((NUMBERS,), tl.float32)
    for begin in tl.range(share * NUMBERS, numbers, shares * NUMBERS, num_stages=AHEAD):
        places = begin + tl.arange(0, NUMBERS)
        most = tl.maximum(most, tl.abs(tl.load(blob + places, mask=places < numbers, other=0.0)))
    tl.store(largest + tl.program_id(1) * shares + share, tl.max(most))


@triton.jit
def exponent(largest, SHARES: tl.constexpr):
    """By which power of 2 a blob's numbers are multiplied before they are rounded."""
    most = tl.max(tl.load(largest + tl.arange(0, SHARES)))
    # 127 is added to exponents. Infinity's is as good as others; that of less than 2^-112 would ask
    # for more than float32 has.
    own = (most.to(tl.int32, bitcast=True) >> 23) & 255
    return 14 + 127 - tl.maximum(own, 15)


@triton.jit
def power(number):
    """2 to a power from -126 to 127."""
    return ((number + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["rows", "height", "width", "gap_row", "gap_column"])
def _round(
    first,
    second,
    rounded_first,
    rounded_second,
    largest,
    pixels,
    rows,
    first_channels,
    second_channels,
    height,
    width,
    gap_row,
    gap_column,
    SHARES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of one of the blobs, scaled and rounded, with gaps."""
    blob, result, count = first, rounded_first, first_channels
    if tl.program_id(2) == 1:
        blob, result, count = second, rounded_second, second_channels
        largest += SHARES
    scale = power(exponent(largest, SHARES))
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
    if (tl.program_id(1) == 0) & (tl.program_id(2) == 0):
        tl.store(pixels + row, tl.where(known, pixel, -1), mask=row < rows)
    tl.store(result + place, (values * scale).to(tl.float16), mask=(row < rows)[:, None] & there)


@triton.jit
def unscaled(total, first, second, SHARES: tl.constexpr):
    """Sums of products of two blobs, given these' largest, as if none had been scaled."""
    both = -exponent(first, SHARES) - exponent(second, SHARES)
    half = both // 2
    return total * power(half) * power(both - half)


@dataclass(frozen=True)
class Scaled:
    """What is the largest in shares of some blobs, these scaled and rounded, rows x channels each,
    and which pixel is in each row; -1 in gaps."""

    largest: Tensor
    blobs: list[Tensor]
    pixels: Tensor


def scaled(blobs: Sequence[Tensor], pad: Pair) -> Scaled:
    """One or two blobs, with gaps of `pad` rows and columns.

    They are float32, of as many images of one size, with their channels innermost.
    """
    first, second = blobs[0], blobs[-1]
    num, _, height, width = first.shape
    rows = num * (height + pad[0]) * (width + pad[1])
    largest = torch.empty(len(blobs), SHARES, device=first.device)
    _find_largest[(SHARES, len(blobs))](
        first, second, largest, first.numel(), second.numel(), NUMBERS=NUMBERS, AHEAD=AHEAD
    )
    channels = [blob.shape[1] for blob in blobs]
    rounded = [
        torch.empty(rows, count, dtype=torch.float16, device=first.device) for count in channels
    ]
    pixels = torch.empty(rows, dtype=torch.int32, device=first.device)
    columns = min(CHANNELS, triton.next_power_of_2(max(channels)))
    tile = ROUNDED // columns
    _round[(triton.cdiv(rows, tile), triton.cdiv(max(channels), columns), len(blobs))](
        first,
        second,
        rounded[0],
        rounded[-1],
        largest,
        pixels,
        rows,
        channels[0],
        channels[-1],
        height,
        width,
        *pad,
        SHARES=SHARES,
        ROWS=tile,
        COLUMNS=columns,
        num_warps=8,
    )
    return Scaled(largest, rounded, pixels)
