"""How many values the weights of each layer may share, for a given loss of accuracy.

There is no training: layers are given few values, first one at a time and then all together, and
the net is scored, as `sensitivity` does with pruning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.surgery.kept_entries import KeptEntries, weighted_layers
from caffe_dns.surgery.sensitivity import Bench, find_objective, measure, propose
from caffe_dns.surgery.shared_values import find_values, nearest
from caffe_dns.surgery.stages import MOST_BITS

FEWEST_BITS = 2
#: The shares of MOST_BITS to save that are tried.
_SAVED = tuple(saved / MOST_BITS for saved in range(1, MOST_BITS - FEWEST_BITS + 1))


@dataclass(frozen=True)
class Bits:
    """The bits of each layer, and the net's scores before and after its values are shared."""

    of_layer: Mapping[str, int]
    score_name: str
    before: float
    after: float

    def __str__(self) -> str:
        layers = ", ".join(f"{name} {bits}" for name, bits in self.of_layer.items())
        return (
            f"{layers}; {self.score_name} {self.after:.6g}, with weights as given {self.before:.6g}"
        )


class ShareableLayer:
    """A layer whose weights can share 2^bits values; its zeros stay."""

    field = "bits"

    def __init__(self, layer: WeightedLayer) -> None:
        self.name = layer.name
        self.sharers: list[str] = []
        self._entries = KeptEntries(layer, zeros=False)
        self._whole = self._entries.get()
        if not bool(self._whole.isfinite().all()):
            raise layer.error("has weights that are not finite numbers")
        self._shared: dict[int, Tensor] = {}

    @property
    def total(self) -> int:
        """The size of the weights with MOST_BITS, in bits."""
        return MOST_BITS * self._whole.numel()

    def settings_for(self, shares: Sequence[float]) -> list[float]:
        """The bits that remain when these shares of MOST_BITS are saved."""
        return [MOST_BITS * (1 - share) for share in shares]

    def apply(self, setting: float) -> None:
        """Let weights share 2^setting values."""
        self._entries.put(self._with(int(setting)))

    def restore(self) -> None:
        """Restore the weights."""
        self._entries.put(self._whole)

    def effect(self, setting: float) -> tuple[int, float]:
        """How many bits are saved, and the error as a fraction of the sum of squares."""
        saved = int(MOST_BITS - setting) * self._whole.numel()
        error = (self._with(int(setting)) - self._whole).double().square().sum()
        return saved, float(error / self._whole.double().square().sum())

    def _with(self, bits: int) -> Tensor:
        if bits not in self._shared:
            entries = self._whole.cpu().numpy()
            values = find_values(entries, 2**bits)
            shared = values[nearest(values, entries)].astype(np.float32)
            self._shared[bits] = torch.from_numpy(shared).to(self._whole.device)
        return self._shared[bits]


def choose_bits(net: Net, batches: int, limit: float) -> Bits:
    """The fewest bits per layer, found by a search, with which a net's score loses at most `limit`.

    `net` is scored on the given number of batches, from the first record on, and is not changed.
    Raises CaffeError if even 8 bits per layer lose more.
    """
    objective = find_objective(net)
    bench = Bench(net, objective, batches)
    layers = [ShareableLayer(layer) for layer in weighted_layers(net)]
    layers = [layer for layer in layers if layer.total and bench.depends_on(layer)]
    study = measure(bench, layers, shares=_SAVED)
    points = propose(bench, layers, study, limit).points
    chosen = {
        layer: MOST_BITS if (point := points[layer.name]) is None else int(point.setting)
        for layer in layers
    }
    score = bench.score_together(chosen)
    bench.rewind()
    if not study.holds(score, limit):
        raise CaffeError(
            f"with {2**MOST_BITS} values a layer, {objective.name} is {score:.6g}, and without "
            f"{study.dense:.6g}: no bits lose at most {limit:g}"
        )
    of_layer = {layer.name: bits for layer, bits in chosen.items()}
    return Bits(of_layer, objective.name, study.dense, score)
