"""How one kernel handles tensors of many sizes: in blocks, each of which knows its tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Blocks:
    """The blocks of some tensors on one device, a program of the kernel for each.

    `owners` has for each the number of its tensor, `starts` its first element; `counts` has the
    number of elements of each tensor.
    """

    def __init__(self, tensors: Sequence[Tensor], size: int) -> None:
        blocks = [
            (owner, start)
            for owner, tensor in enumerate(tensors)
            for start in range(0, tensor.numel(), size)
        ]
        device = tensors[0].device
        self.programs = len(blocks)
        self.owners = torch.tensor([owner for owner, _ in blocks], device=device)
        self.starts = torch.tensor([start for _, start in blocks], device=device)
        self.counts = torch.tensor([tensor.numel() for tensor in tensors], device=device)
