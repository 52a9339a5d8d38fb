"""A normalisation that is left to who adds the blob to another: a pass over memory less."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from caffe_dns.kernels.batch_norm import Normalization


@dataclass
class Postponed:
    """How a blob is to be normalised by who adds it, in one pass after the other."""

    normalization: Normalization | None = None

    def take(self) -> Normalization | None:
        """What has been left to be done in this pass, if anything."""
        left, self.normalization = self.normalization, None
        return left
