"""Layers whose weights can be pruned to a given sparsity, scored, and restored.

Each finds the setting of its layer's own surgery rule (a threshold in standard deviations, or a
c_rate) under which the rule prunes that share of the current weights. The rules are in
`mask_rules`; nothing is trained here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from caffe_dns import mask_rules
from caffe_dns.errors import CaffeError, nearest
from caffe_dns.layers.base import Layer
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks, WeightedLayer
from caffe_dns.net import Net

#: Decimals of a setting: few enough to read, enough for layers of millions of weights.
_DECIMALS = 4


class PrunableLayer(ABC):
    """A layer to prune. While it exists, masks are multiplied into its layer's blobs."""

    #: The field of the definition that a setting belongs to.
    field: ClassVar[str]

    def __init__(self, layer: WeightedLayer, parameters: Sequence[Tensor]) -> None:
        self.layer = layer
        #: Other layers that use the same weight.
        self.sharers: list[str] = []
        self._parameters = [parameter.detach() for parameter in parameters]
        if not all(bool(parameter.isfinite().all()) for parameter in self._parameters):
            raise layer.error("has weights that are not finite numbers")
        #: All values, including those that a mask prunes, as a training run sees them.
        self._values = [parameter.clone() for parameter in self._parameters]
        effective = [tensor for tensor in layer.effective() if tensor is not None]
        self._whole = [tensor.detach().clone() for tensor in effective[: len(self._parameters)]]
        for mask in layer.mask_blobs():
            mask.fill_(1)
        self.restore()

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def total(self) -> int:
        """How many values the rule may prune."""
        return sum(values.numel() for values in self._values)

    def settings_for(self, shares: Sequence[float]) -> list[float]:
        """The settings that prune these shares of the values or, in a tie, the next larger one."""
        distances = self._distances().ravel()
        ranks = [min(max(round(share * distances.size), 1), distances.size - 1) for share in shares]
        ordered = np.partition(distances, sorted({rank - 1 for rank in ranks}))
        return [
            round(float(self._setting(_limit_above(distances, ordered[rank - 1]))), _DECIMALS)
            for rank in ranks
        ]

    def apply(self, setting: float) -> None:
        """Prune the layer's blobs by this setting."""
        masks = self._masks(setting)
        for parameter, values, mask in zip(self._parameters, self._values, masks, strict=True):
            torch.mul(values, mask, out=parameter)

    def restore(self) -> None:
        """Restore the layer's blobs, with the masks of the model applied."""
        for parameter, whole in zip(self._parameters, self._whole, strict=True):
            parameter.copy_(whole)

    def effect(self, setting: float) -> tuple[int, float]:
        """How many values the rule prunes by this setting, and their share of all squares."""
        pruned, energy = 0, 0.0
        for values, mask in zip(self._values, self._masks(setting), strict=True):
            pruned += mask.numel() - int(mask.count_nonzero())
            energy += float((values * (1 - mask)).double().square().sum())
        whole = sum(float(values.double().square().sum()) for values in self._values)
        return pruned, energy / whole if whole else 0.0

    @abstractmethod
    def _distances(self) -> np.ndarray:
        """A distance for each value: the rule prunes the values with the smallest distances."""

    @abstractmethod
    def _setting(self, limit: float) -> float:
        """The setting that prunes the values whose distance is below `limit`."""

    @abstractmethod
    def _masks(self, setting: float) -> list[Tensor]:
        """The masks of the layer's rule for this setting."""


class PrunableByDeviation(PrunableLayer):
    """A layer pruned by standard deviation; its biases stay."""

    field = "threshold"

    def __init__(self, layer: DeviationMasks) -> None:
        super().__init__(layer, layer.blobs[:1])

    def _distances(self) -> np.ndarray:
        weight = self._values[0].double()
        deviation = weight.std(correction=0).clamp(min=torch.finfo(weight.dtype).tiny)
        distances: np.ndarray = ((weight - weight.mean()).abs() / deviation).cpu().numpy()
        return distances

    def _setting(self, limit: float) -> float:
        return limit

    def _masks(self, setting: float) -> list[Tensor]:
        return [mask_rules.deviation_mask(self._values[0], setting)]


class PrunableByMagnitude(PrunableLayer):
    """A layer of the official kind, pruned by magnitude, biases too, starting from full masks."""

    field = "c_rate"

    def __init__(self, layer: MagnitudeMasks) -> None:
        super().__init__(layer, layer.blobs[: 1 + layer.bias_term])
        self._moments = mask_rules.magnitude_moments(self._whole)

    def _distances(self) -> np.ndarray:
        magnitudes = torch.cat([values.reshape(-1) for values in self._values]).abs()
        distances: np.ndarray = magnitudes.double().cpu().numpy()
        return distances

    def _setting(self, limit: float) -> float:
        mu, sigma = self._moments.tolist()
        return (limit / mask_rules.PRUNE_BELOW - mu) / sigma if sigma else 0.0

    def _masks(self, setting: float) -> list[Tensor]:
        return [
            mask_rules.hysteresis_mask(values, torch.ones_like(values), self._moments, setting)
            for values in self._values
        ]


def find_prunable_layers(net: Net, wanted: Sequence[str]) -> list[PrunableLayer]:
    """The layers of `net` that surgery can prune, in the net's order; only the `wanted`, if any.

    A weight that several layers share belongs to the first. Raises CaffeError for a wanted layer
    that does not exist or cannot be pruned.
    """
    layers = [step.layer for step in net.steps if _can_be_pruned(net, step.layer)]
    names = [layer.name for layer in layers]
    for name in wanted:
        layer = net.layer(name)
        if layer is None:
            raise CaffeError(f"there is no layer '{name}'{nearest(name, names)}")
        if name not in names:
            raise layer.error(f"type {layer.type} has no weights of its own that surgery prunes")
    if not layers:
        raise CaffeError("no layer has weights that surgery prunes")
    prunable_layers = [
        _prunable_layer(layer) for layer in layers if not wanted or layer.name in wanted
    ]
    for prunable_layer in prunable_layers:
        prunable_layer.sharers = [
            step.layer.name
            for step in net.steps
            if isinstance(step.layer, WeightedLayer)
            and step.layer is not prunable_layer.layer
            and net.table.owner(step.layer, 0).layer is prunable_layer.layer
        ]
    return prunable_layers


def _can_be_pruned(net: Net, layer: Layer) -> bool:
    if isinstance(layer, DeviationMasks):
        # A Deconvolution is pruned on demand only; others may have been spared by their definition.
        eligible = layer.type != "Deconvolution" or layer.wants_mask()
    else:
        eligible = isinstance(layer, MagnitudeMasks)
    return eligible and net.table.is_owner(layer, 0)


def _prunable_layer(layer: Layer) -> PrunableLayer:
    if isinstance(layer, DeviationMasks):
        return PrunableByDeviation(layer)
    assert isinstance(layer, MagnitudeMasks)
    return PrunableByMagnitude(layer)


def _limit_above(distances: np.ndarray, distance: float) -> float:
    """A number above `distance` and below the next larger one."""
    above = distances[distances > distance]
    return (distance + above.min()) / 2 if above.size else distance
