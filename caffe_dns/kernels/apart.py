"""Weights put apart into what their masks keep and what they take away, in one pass over memory.

PyTorch's foreach operations read and write every weight twice for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.blocks import Blocks

#: How many elements a program of the kernel handles.
BLOCK = 4096


@triton.jit
def _split(addresses, counts, owners, starts, BLOCK: tl.constexpr):
    """pruned = w - w mask; w = w mask."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    weight = tl.load(addresses + 3 * owner).to(tl.pointer_type(tl.float32))
    mask = tl.load(addresses + 3 * owner + 1).to(tl.pointer_type(tl.uint8))
    pruned = tl.load(addresses + 3 * owner + 2).to(tl.pointer_type(tl.float32))
    places = tl.load(starts + program) + tl.arange(0, BLOCK)
    inside = places < tl.load(counts + owner)
    whole = tl.load(weight + places, mask=inside)
    kept = whole * tl.load(mask + places, mask=inside).to(tl.float32)
    tl.store(weight + places, kept, mask=inside)
    tl.store(pruned + places, whole - kept, mask=inside)


class SplitKernel:
    """Puts weights apart: float32 tensors on one GPU, each with a mask and a place for the rest.

    All have to stay where they are, and the three of a weight have the same strides, without gaps.
    Masks are of 0 and 1; what is read of them each time is a copy in bytes.
    """

    def __init__(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], pruned: Sequence[Tensor]
    ) -> None:
        self._masks = list(masks)
        self._bytes = [torch.empty_like(mask, dtype=torch.uint8) for mask in masks]
        self.take_masks()
        rows = [
            [tensor.data_ptr() for tensor in row]
            for row in zip(weights, self._bytes, pruned, strict=True)
        ]
        self._addresses = torch.tensor(rows, device=weights[0].device)
        self._blocks = Blocks(weights, BLOCK)

    def take_masks(self) -> None:
        """Go by what the masks are now."""
        torch._foreach_copy_(self._bytes, self._masks)

    def run(self) -> None:
        """Leave in the weights what the masks keep. May be captured as a CUDA graph."""
        blocks = self._blocks
        # A kernel starts on the current GPU, wherever its tensors are.
        with torch.cuda.device_of(self._addresses):
            _split[(blocks.programs,)](
                self._addresses, blocks.counts, blocks.owners, blocks.starts, BLOCK=BLOCK
            )
