"""A plugin for `dns --import`: the type HeldData, which gives its first batch again and again.

So a run has all that `dns train` does, and nothing to read.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import layer_types
from caffe_dns.layers.data import Data


@layer_types.register("HeldData")
class HeldData(Data):
    """A Data layer that reads a single batch."""

    _held: Sequence[Tensor] = ()

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        # A net that offers memory has taken this batch over, or copied it there.
        offered, self._offered = self._offered, ()
        self._held = offered or self._held or super().forward(*bottoms)
        return self._held
