"""What a layer's filters cost where filters are cut: parameters, multiplications or time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_dns.proto.caffe_pb2 import LayerLatency
from caffe_dns.surgery.masked_layers import MaskedLayer

#: Times are counted in nanoseconds.
PER_MILLISECOND = 1_000_000


class Costs(ABC):
    """Costs are whole numbers that never decrease with more outputs or inputs."""

    @abstractmethod
    def of(self, layer: MaskedLayer, outputs: Tensor, inputs: Tensor) -> Tensor:
        """What a layer costs for each of some numbers of outputs and input channels."""

    def between(self, name: str, share: Tensor) -> Tensor | int:
        """What a layer without weights costs with this share of its channels."""
        return 0

    def fixed(self, names: Sequence[str]) -> int:
        """What the net costs apart from the layers of these names."""
        return 0


class Parameters(Costs):
    def of(self, layer: MaskedLayer, outputs: Tensor, inputs: Tensor) -> Tensor:
        biases = layer.biases // layer.layer.num_output
        return layer.products * outputs * inputs + biases * outputs


class Multiplications(Costs):
    def of(self, layer: MaskedLayer, outputs: Tensor, inputs: Tensor) -> Tensor:
        return layer.products * layer.uses * outputs * inputs


@dataclass(frozen=True)
class _Curve:
    shares: Tensor
    times: Tensor

    def at(self, share: Tensor) -> Tensor:
        """The time at some shares, by linear interpolation between those measured."""
        last = len(self.shares) - 1
        right = torch.searchsorted(self.shares, share).clamp(1, last)
        x0, x1 = self.shares[right - 1], self.shares[right]
        y0, y1 = self.times[right - 1], self.times[right]
        part = ((share - x0) / (x1 - x0)).clamp(0, 1)
        return (y0 + part * (y1 - y0)).round().long()


class Latency(Costs):
    """The time of a pass, in nanoseconds, by a measured table.

    The table has for each layer the times at some shares of what it has in the dense net: of its
    outputs times its inputs, or of its channels if it has no weights.
    """

    def __init__(self, table: Sequence[LayerLatency], device: torch.device) -> None:
        self._curves = {}
        self._whole = {}
        for row in table:
            # If a smaller layer was measured to be slower, that was noise.
            times = np.maximum.accumulate(np.array(row.milliseconds)) * PER_MILLISECOND
            pair = (torch.tensor(numbers, dtype=torch.float64) for numbers in (row.share, times))
            self._curves[row.name] = _Curve(*(numbers.to(device) for numbers in pair))
            self._whole[row.name] = round(float(times[-1]))

    def of(self, layer: MaskedLayer, outputs: Tensor, inputs: Tensor) -> Tensor:
        whole = layer.weights // layer.products
        return self.between(layer.name, outputs * inputs / whole)

    def between(self, name: str, share: Tensor) -> Tensor:
        if name not in self._curves:
            return torch.zeros_like(share, dtype=torch.int64)
        return self._curves[name].at(share.double())

    def fixed(self, names: Sequence[str]) -> int:
        return sum(time for name, time in self._whole.items() if name not in names)
