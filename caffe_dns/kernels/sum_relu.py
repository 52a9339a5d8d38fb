"""The sum of two blobs and the ReLU after it, in one pass."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.layout import laid_out

#: How many numbers one program of a kernel handles.
BLOCK = 2048


@triton.jit
def _forward(first, second, top, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    value = tl.load(first + places, mask=inside, other=0.0).to(tl.float32)
    value += tl.load(second + places, mask=inside, other=0.0).to(tl.float32)
    # NaN stays NaN.
    tl.store(top + places, tl.where(value < 0, 0.0, value), mask=inside)


@triton.jit
def _backward(top, gradients, result, count, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    gradient = tl.load(gradients + places, mask=inside, other=0.0)
    value = tl.load(top + places, mask=inside, other=0.0)
    tl.store(result + places, tl.where(value > 0, gradient, 0.0), mask=inside)


class RectifiedSum(torch.autograd.Function):
    """relu(first + second), of two blobs of one shape and type, float32 or bfloat16."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        first = laid_out(first)
        top = torch.empty_like(first)
        _forward[_grid(top)](first, laid_out(second, like=first), top, top.numel(), BLOCK=BLOCK)
        ctx.save_for_backward(top)
        return top

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (top,) = ctx.saved_tensors
        result = torch.empty_like(top)
        gradient = laid_out(gradients[0], like=top)
        _backward[_grid(top)](top, gradient, result, top.numel(), BLOCK=BLOCK)
        return result, result


def _grid(blob: Tensor) -> tuple[int]:
    return (triton.cdiv(blob.numel(), BLOCK),)
