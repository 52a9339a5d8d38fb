"""Makes crops from the planes of decoded JPEGs: libjpeg's pixels, bit for bit.

Where a JPEG has one colour for two pixels or four, libjpeg takes three quarters of the nearest and
a quarter of the next one, in each direction. The equivalent in PyTorch, and the columns of the
table, are in `data/jpeg_planes`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: How many pixels one program of the kernel makes.
BLOCK = 1024
COLUMNS = tl.constexpr(12)


@triton.jit
def _chroma(plane, inside, row, column, other_row, other_column, pitch, bias):
    """A colour between its samples, 16 to 9 to 3 to 3 to 1."""
    near = 3 * tl.load(plane + row * pitch + column, mask=inside, other=0).to(tl.int32)
    near += tl.load(plane + other_row * pitch + column, mask=inside, other=0).to(tl.int32)
    far = 3 * tl.load(plane + row * pitch + other_column, mask=inside, other=0).to(tl.int32)
    far += tl.load(plane + other_row * pitch + other_column, mask=inside, other=0).to(tl.int32)
    return ((3 * near + far + bias) >> 4) - 128


@triton.jit
def _byte(value):
    return tl.minimum(tl.maximum(value, 0), 255).to(tl.uint8)


@triton.jit
def _pixels(memory, table, result, height, width, BLOCK: tl.constexpr):
    """Some pixels of one image."""
    entry = table + tl.program_id(0) * COLUMNS
    place = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = place < height * width
    row = tl.load(entry + 9).to(tl.int32) + place // width
    column = tl.load(entry + 10).to(tl.int32) + place % width
    pitch, chroma_pitch = tl.load(entry + 3), tl.load(entry + 4)
    rows, columns = tl.load(entry + 5).to(tl.int32), tl.load(entry + 6).to(tl.int32)
    of_rows, of_columns = tl.load(entry + 7).to(tl.int32), tl.load(entry + 8).to(tl.int32)
    odd_row, odd_column = row % of_rows, column % of_columns
    near_row, near_column = row // of_rows, column // of_columns
    other_row = near_row + tl.where(of_rows == 2, 2 * odd_row - 1, 0)
    other_column = near_column + tl.where(of_columns == 2, 2 * odd_column - 1, 0)
    other_row = tl.minimum(tl.maximum(other_row, 0), rows - 1)
    other_column = tl.minimum(tl.maximum(other_column, 0), columns - 1)
    both = tl.where(of_rows == 2, 8 - odd_column, 4 + 4 * odd_column)
    one = tl.where(of_rows == 2, 4 + 4 * odd_row, 0 * odd_row)
    bias = tl.where(of_columns == 2, both, one)
    y = tl.load(memory + tl.load(entry) + row * pitch + column, mask=inside, other=0).to(tl.int32)
    blue, red = memory + tl.load(entry + 1), memory + tl.load(entry + 2)
    cb = _chroma(blue, inside, near_row, near_column, other_row, other_column, chroma_pitch, bias)
    cr = _chroma(red, inside, near_row, near_column, other_row, other_column, chroma_pitch, bias)
    target = result + tl.load(entry + 11) * 3 * height * width + place
    tl.store(target, _byte(y + ((116130 * cb + 32768) >> 16)), mask=inside)
    green = y + ((-22554 * cb - 46802 * cr + 32768) >> 16)
    tl.store(target + height * width, _byte(green), mask=inside)
    tl.store(target + 2 * height * width, _byte(y + ((91881 * cr + 32768) >> 16)), mask=inside)


def pixels(memory: Tensor, table: Tensor, result: Tensor) -> None:
    """What `jpeg_planes.pixels` does, `table` being int64 [N, 12] on the same device."""
    _, _, height, width = result.shape
    grid = (len(table), triton.cdiv(height * width, BLOCK))
    _pixels[grid](memory, table, result, height, width, BLOCK=BLOCK)
