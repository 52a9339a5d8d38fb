"""Splits weights into what their masks keep and what they take away, and joins them again.

Each is one pass over memory. PyTorch's foreach operations read and write every weight twice to
split them, and launch several kernels for either.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.kernels.blocks import Blocks

#: How many elements a program of the kernel handles. 1024 use an H200's memory better than 4096:
#: splitting 110 million weights takes 0.36 ms instead of 0.41.
BLOCK = 1024
#: If an address is a multiple of this many bytes, a thread reads as many at once.
ALIGNMENT = 16


@triton.jit
def _split_places(weight, mask, pruned, places, inside):
    whole = tl.load(weight + places, mask=inside)
    kept = whole * tl.load(mask + places, mask=inside).to(tl.float32)
    tl.store(weight + places, kept, mask=inside)
    tl.store(pruned + places, whole - kept, mask=inside)


@triton.jit
def _merge_places(weight, mask, pruned, places, inside):
    kept = tl.load(weight + places, mask=inside)
    tl.store(weight + places, kept + tl.load(pruned + places, mask=inside), mask=inside)


@triton.jit
def _move(
    addresses, counts, owners, starts, SPLIT: tl.constexpr, DIVISOR: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Either pruned = w - w mask; w = w mask, or w = w + pruned."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    start = tl.multiple_of(tl.load(starts + program), BLOCK)
    count = tl.load(counts + owner)
    row = addresses + 3 * owner
    weight = tl.multiple_of(tl.load(row).to(tl.pointer_type(tl.float32)), DIVISOR)
    mask = tl.multiple_of(tl.load(row + 1).to(tl.pointer_type(tl.uint8)), DIVISOR)
    pruned = tl.multiple_of(tl.load(row + 2).to(tl.pointer_type(tl.float32)), DIVISOR)
    places = start + tl.arange(0, BLOCK)
    move: tl.constexpr = _split_places if SPLIT else _merge_places
    # The last block is read element by element.
    if start + BLOCK <= count:
        move(weight, mask, pruned, places, None)
    else:
        move(weight, mask, pruned, places, places < count)


class ApartKernel:
    """Splits weights: float32 tensors on one GPU, each with a mask and memory for the rest.

    All must stay in place; the three tensors of a weight have the same dense strides. Masks are 0
    and 1; the kernel reads a copy of them in bytes.
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
        aligned = all(address % ALIGNMENT == 0 for row in rows for address in row)
        self._divisor = ALIGNMENT if aligned else 1
        self._addresses = torch.tensor(rows, device=weights[0].device)
        self._blocks = Blocks(weights, BLOCK)

    def take_masks(self) -> None:
        """Use the current values of the masks."""
        torch._foreach_copy_(self._bytes, self._masks)

    def split(self) -> None:
        """Leave in the weights what the masks keep. May be captured as a CUDA graph."""
        self._run(split=True)

    def merge(self) -> None:
        """Put the whole weights back. May be captured as a CUDA graph."""
        self._run(split=False)

    def _run(self, *, split: bool) -> None:
        blocks = self._blocks
        # A kernel starts on the current GPU, wherever its tensors are.
        with torch.cuda.device_of(self._addresses):
            _move[(blocks.programs,)](
                self._addresses,
                blocks.counts,
                blocks.owners,
                blocks.starts,
                SPLIT=split,
                DIVISOR=self._divisor,
                BLOCK=BLOCK,
            )
