"""What masks take away from parameters, kept beside them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class KeptApart:
    """Parameters, their masks, and the pruned part of each.

    Unless merged, parameter + pruned is the whole weight, whatever is added to a parameter. Both
    moves may be made twice.
    """

    def __init__(self, parameters: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.masks = list(masks)
        self.pruned = [torch.zeros_like(mask) for mask in masks]
        #: Whether the whole weights are in the parameters, and `pruned` is out of date.
        self._merged = False

    @torch.no_grad()
    def merge(self) -> None:
        """Put the whole weights into the parameters."""
        if not self._merged:
            torch._foreach_add_(self.parameters, self.pruned)
            self._merged = True

    @torch.no_grad()
    def split(self) -> None:
        """Leave in the parameters what the masks keep."""
        self.merge()
        torch._foreach_copy_(self.pruned, self.parameters)
        torch._foreach_mul_(self.parameters, self.masks)
        torch._foreach_sub_(self.pruned, self.parameters)
        self._merged = False

    def forget(self) -> None:
        """Give up what is pruned."""
        self.split()
        torch._foreach_zero_(self.pruned)
