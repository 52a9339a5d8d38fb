"""The weights and biases of a layer that its masks keep, as one vector."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net


class KeptEntries:
    """The kept entries, as long as the masks do not change; without `zeros`, only the nonzero ones.

    Works on the layer's blobs themselves.
    """

    def __init__(self, layer: WeightedLayer, *, zeros: bool) -> None:
        masks = layer.mask_blobs()
        self._parts: list[tuple[Tensor, tuple[Tensor, ...]]] = []
        for index, parameter in enumerate(layer.blobs[: 2 if layer.bias_term else 1]):
            kept = masks[index] if index < len(masks) else torch.ones_like(parameter)
            if not zeros:
                kept = kept * parameter.detach()
            self._parts.append((parameter.detach(), kept.nonzero(as_tuple=True)))

    def get(self) -> Tensor:
        """The current entries: float32, 1-dim."""
        return torch.cat([parameter[places] for parameter, places in self._parts])

    def put(self, entries: Tensor) -> None:
        """Set the entries."""
        sizes = [len(places[0]) for _, places in self._parts]
        for (parameter, places), own in zip(self._parts, entries.split(sizes), strict=True):
            parameter.index_put_(places, own)


def weighted_layers(net: Net) -> Iterator[WeightedLayer]:
    """The layers with a matrix of weights; layers that share a blob count once."""
    owners: set[int] = set()
    for step in net.steps:
        if isinstance(step.layer, WeightedLayer):
            address = step.layer.blobs[0].data_ptr()
            if address not in owners:
                owners.add(address)
                yield step.layer
