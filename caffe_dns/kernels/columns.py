"""Scales a matrix and lays it out column by column, in the same pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: The side of the square that a program of the kernel handles.
SIDE = 64


@triton.jit
def _turn(source, result, rows, columns, stride, factor, SIDE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * SIDE + tl.arange(0, SIDE)[:, None]
    column = tl.program_id(1).to(tl.int64) * SIDE + tl.arange(0, SIDE)[None, :]
    inside = (row < rows) & (column < columns)
    square = tl.load(source + row * stride + column, mask=inside) * factor
    tl.store(result + column * rows + row, square, mask=inside)


def by_columns(matrix: Tensor, factor: float = 1.0) -> Tensor:
    """`matrix * factor`, stored column by column, for a float32 matrix on a GPU.

    There may be gaps between its rows. TF32 products are fastest if the dimension that is summed
    over is contiguous.
    """
    rows, columns = matrix.shape
    result = matrix.new_empty(columns, rows)
    grid = (triton.cdiv(rows, SIDE), triton.cdiv(columns, SIDE))
    _turn[grid](matrix, result, rows, columns, matrix.stride(0), factor, SIDE=SIDE)
    return result.t()
