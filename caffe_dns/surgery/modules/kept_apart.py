"""What masks take away from parameters, stored beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffe_dns import kernels

if TYPE_CHECKING:
    from caffe_dns.kernels.apart import ApartKernel


class KeptApart:
    """Parameters, their masks, and the pruned part of each.

    Unless merged, parameter + pruned is the whole weight, whatever is added to a parameter. Both
    moves may be made twice. Whoever changes masks says so to `take_masks`.
    """

    def __init__(self, parameters: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.masks = list(masks)
        self.pruned = [torch.zeros_like(mask) for mask in masks]
        self._addresses = [parameter.data_ptr() for parameter in self.parameters]
        #: Whether the whole weights are in the parameters, and `pruned` is out of date.
        self._merged = False
        self._kernel = self._make_kernel()

    def moved(self) -> list[int]:
        """The numbers of the parameters that lie elsewhere than at first."""
        return [
            number
            for number, parameter in enumerate(self.parameters)
            if parameter.data_ptr() != self._addresses[number]
        ]

    @torch.no_grad()
    def merge(self) -> None:
        """Put the whole weights into the parameters."""
        if not self._merged:
            if kernel := self._usable_kernel():
                kernel.merge()
            else:
                torch._foreach_add_(self.parameters, self.pruned)
            self._merged = True

    @torch.no_grad()
    def split(self) -> None:
        """Leave in the parameters what the masks keep."""
        self.merge()
        if kernel := self._usable_kernel():
            kernel.split()
        else:
            torch._foreach_copy_(self.pruned, self.parameters)
            torch._foreach_mul_(self.parameters, self.masks)
            torch._foreach_sub_(self.pruned, self.parameters)
        self._merged = False

    def take_masks(self) -> None:
        """Go by what the masks are now."""
        if self._kernel is not None:
            self._kernel.take_masks()

    def forget(self) -> None:
        """Give up what is pruned."""
        self.split()
        torch._foreach_zero_(self.pruned)

    def _usable_kernel(self) -> ApartKernel | None:
        # A compiler would not know what the kernel writes to.
        if self._kernel is None or torch.compiler.is_compiling() or self.moved():
            return None
        return self._kernel

    def _make_kernel(self) -> ApartKernel | None:
        """What makes either move for all at once, where it can be had."""
        rows = list(zip(self.parameters, self.masks, self.pruned, strict=True))
        if not kernels.wanted(self.parameters[0].device) or not all(
            parameter.dtype == torch.float32
            and parameter.stride() == mask.stride() == pruned.stride()
            for parameter, mask, pruned in rows
        ):
            return None
        from caffe_dns.kernels.apart import ApartKernel

        return ApartKernel(self.parameters, self.masks, self.pruned)
