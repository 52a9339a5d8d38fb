"""Weights that are zero at the start and stay so: `connectivity_mode` of wenwei202's fork."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import LayerParameter

_WHAT = {
    LayerParameter.DISCONNECTED_ELTWISE: "all zero weights",
    LayerParameter.DISCONNECTED_GRPWISE: "weights lying in all-zero groups",
}


class FrozenZeros:
    """The weights of the layers whose definition freezes zeros."""

    def __init__(self, net: Net) -> None:
        """Raises CaffeError if a layer without weights asks for it."""
        self._layers: list[WeightedLayer] = []
        for step in net.steps:
            mode = step.layer.param.connectivity_mode
            if mode == LayerParameter.CONNECTED:
                continue
            if not isinstance(step.layer, WeightedLayer):
                raise step.layer.error(
                    f"type {step.layer.type} has no weights to disconnect", "connectivity_mode"
                )
            log.info(f"{_WHAT[mode]} of {step.layer.name} are frozen")
            self._layers.append(step.layer)
        self._masks: list[Tensor] | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """A context for an update: what was zero before the first update is zero after it."""
        if not self._layers:
            yield
            return
        weights = [layer.blobs[0].detach() for layer in self._layers]
        if self._masks is None:
            self._masks = [
                _kept(layer, weight) for layer, weight in zip(self._layers, weights, strict=True)
            ]
        yield
        torch._foreach_mul_(weights, self._masks)


def _kept(layer: WeightedLayer, weight: Tensor) -> Tensor:
    """1 where a weight may change, else 0.

    In groups, a weight stays 0 if all weights of its output, or of its input, are 0.
    """
    kept = weight != 0
    if layer.param.connectivity_mode == LayerParameter.DISCONNECTED_GRPWISE:
        group = layer.param.convolution_param.group
        rows = kept.reshape(group, len(kept) // group, -1)
        kept = rows.any(2, keepdim=True) & rows.any(1, keepdim=True)
        kept = kept.view(weight.shape)
    return kept.to(weight.dtype)
