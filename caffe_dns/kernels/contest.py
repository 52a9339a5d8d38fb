"""Sorts strengths into kept, contested and pruned ones by two bounds for each layer, in one pass.

PyTorch's operations need about ten kernels for each layer, and as many passes over memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.blocks import Blocks

#: How many strengths a program of the kernel handles.
BLOCK = 4096


@triton.jit
def _divide(
    values, contested, owners, starts, counts, offsets, low, high, scales, squares, below, shares,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Which are contested; and of this block, the kept squares and the largest pruned strength."""
    owner = tl.load(owners + tl.program_id(0))
    start = tl.load(starts + tl.program_id(0))
    places = start + tl.arange(0, BLOCK)
    inside = places < tl.load(counts + owner)
    mine = tl.load(offsets + owner) + places
    value = tl.load(values + mine, mask=inside, other=-1.0)
    weaker = value < tl.load(low + owner)
    kept = value >= tl.load(high + owner)
    tl.store(contested + mine, (value >= tl.load(low + owner)) & (kept == 0), mask=inside)
    relative = tl.where(inside & kept, tl.div_rn(value, tl.load(scales + owner)), 0.0)
    share = owner * shares + start // BLOCK
    tl.store(squares + share, tl.sum((relative * relative).to(tl.float64)))
    tl.store(below + share, tl.max(tl.where(inside & weaker, value, -1.0)))


class ContestKernel:
    """Sorts float32 strengths of some layers on one GPU, concatenated layer by layer."""

    def __init__(self, of_layers: Sequence[Tensor]) -> None:
        sizes = [len(own) for own in of_layers]
        self._blocks = Blocks(of_layers, BLOCK)
        self._offsets = self._blocks.counts.cumsum(0) - self._blocks.counts
        #: How many programs the largest layer has.
        self._shares = triton.cdiv(max(sizes), BLOCK)

    def run(
        self, values: Tensor, low: Tensor, high: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which strengths are in [`low`, `high`) of their layer, bool.

        Also, for each layer, the sum of the squares of those from `high` on, each divided by the
        layer's entry of `scales` first (float64), and the largest below `low`, -1 if there is none.
        May be captured as a CUDA graph.
        """
        blocks, layers = self._blocks, len(self._offsets)
        contested = torch.empty_like(values, dtype=torch.bool)
        squares = torch.zeros(layers, self._shares, dtype=torch.float64, device=values.device)
        below = torch.full_like(squares, -1.0, dtype=torch.float32)
        # A kernel starts on the current GPU, wherever its tensors are.
        with torch.cuda.device_of(values):
            _divide[(blocks.programs,)](
                values,
                contested,
                blocks.owners,
                blocks.starts,
                blocks.counts,
                self._offsets,
                low.float(),
                high.float(),
                scales.float(),
                squares,
                below,
                self._shares,
                BLOCK=BLOCK,
            )
        # Always in the same order, so that the sums have the same bits.
        return contested, squares.sum(1), below.amax(1)
