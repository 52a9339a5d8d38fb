"""Multiplies any number of parameters by their masks and rounds the products, in one kernel.

Large parameters have a kernel each, and memory that is theirs only until the product has been read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.blocks import Blocks

#: How many elements one program of the kernel handles.
BLOCK = 1024
#: From how many numbers on a parameter is large: as many as take longer than a launch by far.
LARGE = 1 << 24


@triton.jit
def _multiply(addresses, counts, owners, starts, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """product = parameter * mask, or the parameter itself where there is no mask."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    places = tl.load(starts + program) + tl.arange(0, BLOCK)
    inside = places < tl.load(counts + owner)
    parameter = tl.load(addresses + 3 * owner).to(tl.pointer_type(tl.float32))
    value = tl.load(parameter + places, mask=inside)
    mask = tl.load(addresses + 3 * owner + 1)
    if mask != 0:
        value *= tl.load(mask.to(tl.pointer_type(tl.float32)) + places, mask=inside)
    result = tl.load(addresses + 3 * owner + 2)
    if HALF:
        tl.store(result.to(tl.pointer_type(tl.bfloat16)) + places, value, mask=inside)
    else:
        tl.store(result.to(tl.pointer_type(tl.float32)) + places, value, mask=inside)


@triton.jit
def _multiply_one(parameter, mask, result, count, BLOCK: tl.constexpr):
    """result = parameter * mask, or the parameter itself where the mask is None.

    From the last numbers to the first, which are in the cache when a product of matrices begins.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    places = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    value = tl.load(parameter + places, mask=inside)
    if mask is not None:
        value *= tl.load(mask + places, mask=inside)
    tl.store(result + places, value, mask=inside)


class Products:
    """`parameters`, each times its mask if it has one, in `dtype`: float32 or bfloat16.

    Parameters and masks are float32 tensors on one GPU, a mask laid out as its parameter. They have
    to stay where they are. What `run` returns is overwritten by the next; of large ones, it returns
    what computes the product.
    """

    def __init__(
        self, parameters: Sequence[Tensor], masks: Sequence[Tensor | None], dtype: torch.dtype
    ) -> None:
        pairs = list(zip(parameters, masks, strict=True))
        self._large = [(p, mask) if p.numel() >= LARGE else None for p, mask in pairs]
        self._dtype = dtype
        small = [pair for pair, large in zip(pairs, self._large, strict=True) if large is None]
        self._results = [torch.empty_like(p, dtype=dtype) for p, _ in small]
        rows = [
            [p.data_ptr(), 0 if mask is None else mask.data_ptr(), result.data_ptr()]
            for (p, mask), result in zip(small, self._results, strict=True)
        ]
        if small:
            self._blocks = Blocks([p for p, _ in small], BLOCK)
            self._addresses = torch.tensor(rows, device=parameters[0].device)

    def run(self) -> list[Tensor | Callable[[], Tensor]]:
        """The products, without a gradient."""
        if self._results:
            self._multiply_small()
        results = iter(self._results)
        return [
            next(results) if pair is None else partial(self._multiply, *pair)
            for pair in self._large
        ]

    def _multiply(self, parameter: Tensor, mask: Tensor | None) -> Tensor:
        """The product of a large parameter."""
        parameter = parameter.detach()
        result, count = torch.empty_like(parameter, dtype=self._dtype), parameter.numel()
        _multiply_one[(triton.cdiv(count, BLOCK),)](parameter, mask, result, count, BLOCK=BLOCK)
        return result

    def _multiply_small(self) -> None:
        _multiply[(self._blocks.programs,)](
            self._addresses,
            self._blocks.counts,
            self._blocks.owners,
            self._blocks.starts,
            HALF=self._dtype == torch.bfloat16,
            BLOCK=BLOCK,
        )
