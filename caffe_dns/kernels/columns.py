"""Scales a matrix and lays it out column by column, in the same pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: The sides of the squares that programs of the kernel handle.
SIDE = 64


@triton.jit
def _turn(source, result, rows, columns, stride, factor, SIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)[:, None]
    column = tl.program_id(1).to(tl.int64) * SIDE + tl.arange(0, SIDE)[None, :]
    inside = (row < rows) & (column < columns)
    square = tl.load(source + row * stride + column, mask=inside) * factor
    tl.store(result + column * rows + row, square, mask=inside)


def by_columns(matrix: Tensor, factor: float = 1.0) -> Tensor:
    """`matrix * factor` in memory column by column, of a float32 matrix on a GPU.

    There may be gaps between its rows. TF32 multiplies matrices fastest when the numbers to be
    added up lie one after the other.
    """
    rows, columns = matrix.shape
    result = matrix.new_empty(columns, rows)
    grid = (triton.cdiv(rows, SIDE), triton.cdiv(columns, SIDE))
    _turn[grid](matrix, result, rows, columns, matrix.stride(0), factor, SIDE=SIDE)
    return result.t()
