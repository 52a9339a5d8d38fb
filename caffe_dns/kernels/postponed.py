"""What is left to the reader of a blob, or left out because nothing reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from caffe_dns.kernels.batch_norm import Normalization


@dataclass
class Postponed:
    """How a blob is to be normalised by who reads it, in one pass after the other.

    On the way back, who has read it may have added up its gradient, too.
    """

    normalization: Normalization | None = None
    _added_up: tuple[Tensor, tuple[Tensor, Tensor]] | None = None

    def take(self) -> Normalization | None:
        """What has been left to be done in this pass, if anything."""
        left, self.normalization = self.normalization, None
        return left

    def leave_gradients(self, gradient: Tensor, along: tuple[Tensor, Tensor]) -> None:
        """Those of shift and factor, which go with this gradient of the normalised blob."""
        self._added_up = gradient, along

    def take_gradients(self, gradient: Tensor) -> tuple[Tensor, Tensor] | None:
        """What has been left, if it goes with this gradient."""
        left, self._added_up = self._added_up, None
        if left is None or left[0].data_ptr() != gradient.data_ptr():
            return None
        return left[1]


@dataclass
class Sampling:
    """A blob whose readers all look at the first pixel of every so many, each way.

    Whether it has no others in this pass is decided by who makes it.
    """

    stride: int
    is_done: bool = False
