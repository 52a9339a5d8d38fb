"""Inner products with few outputs, such as the last layer of a small net.

cuBLAS runs such a product in one or two programs, each with a long sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.layout import LARGEST

#: Rows of a tile, which has all outputs, numbers to be added up at a time, and numbers of a bottom
#: in a tile.
ROWS, SUMMED, COLUMNS = 16, 128, 64


@triton.jit
def _top(
    x,
    weight,
    bias,
    result,
    rows,
    outputs,
    INPUTS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    SUMMED: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o = tl.arange(0, OUTPUTS)
    total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    for start in range(0, INPUTS, SUMMED):
        i = start + tl.arange(0, SUMMED)
        values = tl.load(
            x + row[:, None] * INPUTS + i[None, :],
            mask=(row < rows)[:, None] & (i < INPUTS)[None, :],
            other=0.0,
        )
        factors = tl.load(
            weight + o[None, :] * INPUTS + i[:, None],
            mask=(o < outputs)[None, :] & (i < INPUTS)[:, None],
            other=0.0,
        )
        total = tl.dot(values, factors, total, input_precision="tf32")
    if HAS_BIAS:
        total += tl.load(bias + o, mask=o < outputs, other=0.0)[None, :]
    tl.store(
        result + row[:, None] * outputs + o[None, :],
        total,
        mask=(row < rows)[:, None] & (o < outputs)[None, :],
    )


@triton.jit
def _bottom(
    gradient,
    weight,
    result,
    rows,
    inputs,
    outputs,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    o = tl.arange(0, OUTPUTS)
    above = tl.load(
        gradient + row[:, None] * outputs + o[None, :],
        mask=(row < rows)[:, None] & (o < outputs)[None, :],
        other=0.0,
    )
    factors = tl.load(
        weight + o[:, None] * inputs + i[None, :],
        mask=(o < outputs)[:, None] & (i < inputs)[None, :],
        other=0.0,
    )
    tl.store(
        result + row[:, None] * inputs + i[None, :],
        tl.dot(above, factors, input_precision="tf32"),
        mask=(row < rows)[:, None] & (i < inputs)[None, :],
    )


def fits(*matrices: Tensor) -> bool:
    """Whether kernels can work on these: float32, where TF32 may be used, contiguous."""
    return torch.backends.cuda.matmul.allow_tf32 and all(
        matrix.dim() == 2
        and matrix.dtype == torch.float32
        and 0 < matrix.numel() <= LARGEST
        and matrix.is_contiguous()
        for matrix in matrices
    )


def top(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    """x w^T + b: x is N x K, w is M x K."""
    rows, inputs = x.shape
    result = torch.empty(rows, len(w), device=x.device)
    _top[(triton.cdiv(rows, ROWS),)](
        x,
        w,
        b,
        result,
        rows,
        len(w),
        INPUTS=inputs,
        HAS_BIAS=b is not None,
        ROWS=ROWS,
        OUTPUTS=_outputs(w),
        SUMMED=SUMMED,
    )
    return result


def bottom_gradient(gradient: Tensor, w: Tensor) -> Tensor:
    """The gradient of x: gradient w."""
    rows, inputs = len(gradient), w.shape[1]
    result = torch.empty(rows, inputs, device=w.device)
    _bottom[(triton.cdiv(rows, ROWS), triton.cdiv(inputs, COLUMNS))](
        gradient,
        w,
        result,
        rows,
        inputs,
        len(w),
        ROWS=ROWS,
        OUTPUTS=_outputs(w),
        COLUMNS=COLUMNS,
    )
    return result


def _outputs(w: Tensor) -> int:
    """Those of a tile: Tensor Cores want 16."""
    return max(16, triton.next_power_of_2(len(w)))
