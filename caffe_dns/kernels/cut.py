"""Masks of any number of layers from strengths and a threshold for each layer, in one pass.

PyTorch's operations need about eight kernels for each mask, and as many passes over memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.blocks import Blocks

#: How many entries of a mask a program of the kernel handles.
BLOCK = 4096
#: The columns of the table.
MASK, COUNTER, OFFSET, LAYER, COLUMNS = (tl.constexpr(column) for column in range(5))


@triton.jit
def _cut(strengths, thresholds, table, counts, owners, starts, BLOCK: tl.constexpr):
    """Keep what is stronger, and count what is spliced back."""
    owner = tl.load(owners + tl.program_id(0))
    places = tl.load(starts + tl.program_id(0)) + tl.arange(0, BLOCK)
    inside = places < tl.load(counts + owner)
    row = table + COLUMNS * owner
    mask = tl.load(row + MASK).to(tl.pointer_type(tl.float32))
    counter = tl.load(row + COUNTER).to(tl.pointer_type(tl.int64))
    strength = tl.load(strengths + tl.load(row + OFFSET) + places, mask=inside, other=0.0)
    old = tl.load(mask + places, mask=inside, other=1.0)
    new = (strength > tl.load(thresholds + tl.load(row + LAYER))).to(tl.float32)
    # Only changed entries, which are few, are written.
    tl.store(mask + places, new, mask=inside & (new != old))
    came_back = tl.sum((inside & (new > old)).to(tl.int32))
    if came_back > 0:
        tl.atomic_add(counter, came_back.to(tl.int64))


@dataclass(frozen=True)
class CutMask:
    """A dense float32 mask, and the index of its layer.

    The number of entries spliced back is added to `counter`, a 0-dim int64.
    """

    mask: Tensor
    counter: Tensor
    layer: int


class CutKernel:
    """Renews masks on one GPU, which must stay in place."""

    def __init__(self, masks: Sequence[CutMask]) -> None:
        self._blocks = Blocks([each.mask for each in masks], BLOCK)
        rows, offset = [], 0
        for each in masks:
            rows.append([each.mask.data_ptr(), each.counter.data_ptr(), offset, each.layer])
            offset += each.mask.numel()
        self._table = torch.tensor(rows, device=masks[0].mask.device)

    def run(self, strengths: Tensor, thresholds: Tensor) -> None:
        """Keep exactly what is stronger than its layer's threshold.

        `strengths` has those of all masks, concatenated, each in its mask's memory order; both are
        float32. May be captured as a CUDA graph.
        """
        blocks = self._blocks
        # A kernel starts on the current GPU, wherever its tensors are.
        with torch.cuda.device_of(strengths):
            _cut[(blocks.programs,)](
                strengths,
                thresholds,
                self._table,
                blocks.counts,
                blocks.owners,
                blocks.starts,
                BLOCK=BLOCK,
            )
