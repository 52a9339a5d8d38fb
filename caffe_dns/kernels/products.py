"""Masks applied to any number of parameters, and the products rounded, in one kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.blocks import Blocks

#: How many elements one program of the kernel handles.
BLOCK = 1024


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


class Products:
    """`parameters`, each times its mask if it has one, in `dtype`: float32 or bfloat16.

    Parameters and masks are float32 tensors on one GPU, a mask laid out as its parameter. They have
    to stay where they are. What `run` returns is overwritten by the next.
    """

    def __init__(
        self, parameters: Sequence[Tensor], masks: Sequence[Tensor | None], dtype: torch.dtype
    ) -> None:
        self._results = [torch.empty_like(p, dtype=dtype) for p in parameters]
        rows = [
            [p.data_ptr(), 0 if mask is None else mask.data_ptr(), result.data_ptr()]
            for p, mask, result in zip(parameters, masks, self._results, strict=True)
        ]
        self._blocks = Blocks(parameters, BLOCK)
        self._half = dtype == torch.bfloat16
        self._addresses = torch.tensor(rows, device=parameters[0].device)

    def run(self) -> list[Tensor]:
        """The products, without a gradient."""
        _multiply[(self._blocks.programs,)](
            self._addresses,
            self._blocks.counts,
            self._blocks.owners,
            self._blocks.starts,
            HALF=self._half,
            BLOCK=BLOCK,
        )
        return self._results
