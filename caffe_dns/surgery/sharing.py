"""Training with few values: in a stage with bits, the weights of each layer share 2^bits values.

Each kept weight has a position on the number line, which every update moves; the net computes with
the value that is nearest to it. The values are the means of their weights, one round of k-means an
iteration, so that they are trained as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SharedValues
from caffe_dns.surgery.kept_entries import KeptEntries, weighted_layers
from caffe_dns.surgery.masked_layers import Replayed
from caffe_dns.surgery.shared_values import find_values, rounded
from caffe_dns.surgery.stages import Stage, stage_at

#: How many pairs of a weight and a value are compared at once.
_AT_ONCE = 1 << 22


class Sharing:
    """The values of one net's layers, in those stages of a run that have bits."""

    def __init__(self, net: Net, stages: Sequence[Stage]) -> None:
        self._net, self._stages = net, stages
        self._check_stages()
        self._stage: Stage | None = None
        self._layers: list[_Layer] = []
        self._renew: Replayed[None] | None = None
        #: What a solver state says, by layer.
        self._restored: dict[str, SharedValues] = {}

    def enter(self, iteration: int) -> None:
        """Before an iteration: let values be shared if a stage begins, or goes on, that says so."""
        stage = stage_at(self._stages, iteration)
        if stage is self._stage:
            return
        self._stage, self._layers, self._renew = stage, [], None
        if not stage.surgery.HasField("bits"):
            return
        for layer in weighted_layers(self._net):
            known = self._restored.get(layer.name) if iteration != stage.start else None
            self._layers.append(_Layer(layer, 2 ** stage.bits_of(layer.name), known))
        self._renew = Replayed(self._renew_layers, self._net.context.device)
        for shared in self._layers:
            log.info(f"Shared values of {shared.name}: {len(shared.values)} of {shared.size}")

    def renew(self) -> None:
        """After an update: move the weights, then the values."""
        if self._renew is not None:
            self._renew()

    def state(self) -> list[SharedValues]:
        """What a solver state has to hold."""
        if self._stage is None:
            return list(self._restored.values())
        return [layer.state() for layer in self._layers]

    def restore(self, entries: Sequence[SharedValues]) -> None:
        """Take over what a solver state says."""
        self._restored = {entry.layer: entry for entry in entries}
        self._stage = None

    def _check_stages(self) -> None:
        names = [layer.name for layer in weighted_layers(self._net)]
        for stage in self._stages:
            for entry in stage.surgery.layer if stage.surgery.HasField("bits") else ():
                if entry.name not in names:
                    raise stage.error(
                        f"no layer with a matrix of weights is named '{entry.name}'; there are: "
                        f"{', '.join(names) or 'none'}",
                        "layer",
                    )

    @torch.no_grad()
    def _renew_layers(self) -> None:
        for layer in self._layers:
            layer.renew()


class _Layer:
    """One layer's kept weights and biases, and the values that they share."""

    def __init__(self, layer: WeightedLayer, count: int, known: SharedValues | None) -> None:
        self.name = layer.name
        self._count = count
        self._entries = KeptEntries(layer, zeros=True)
        self._weights = self._entries.get()
        if known is not None and len(known.weight) == self.size:
            self._weights.copy_(torch.tensor(known.weight))
            found = np.array(known.value, np.float32)
        else:
            found = find_values(self._weights.cpu().numpy(), count).astype(np.float32)
        self.values = torch.from_numpy(found).to(self._weights.device)
        #: What the net computes with at the moment.
        self._used = torch.empty_like(self._weights)
        self._use()

    @property
    def size(self) -> int:
        """How many weights and biases share the values."""
        return self._weights.numel()

    def renew(self) -> None:
        """Move each weight by what the update did to its value, and each value to its weights."""
        self._weights += self._entries.get() - self._used
        nearest = self._nearest()
        # A few values at a time: many small steps take longer, many large rows need memory.
        indices = torch.arange(len(self.values), device=nearest.device)
        step = max(_AT_ONCE // max(self.size, 1), 1)
        for values, some in zip(self.values.split(step), indices.split(step), strict=True):
            chosen = nearest == some.unsqueeze(1)
            counts = chosen.sum(1)
            means = (self._weights * chosen).sum(1) / counts.clamp(min=1)
            values.copy_(torch.where(counts > 0, means, values))
        self._use()

    def state(self) -> SharedValues:
        return SharedValues(
            layer=self.name, value=self.values.tolist(), weight=self._weights.tolist()
        )

    def _nearest(self) -> Tensor:
        """The index of the value that is nearest to each weight."""
        return torch.bucketize(self._weights, (self.values[1:] + self.values[:-1]) / 2)

    def _use(self) -> None:
        """Put values in the place of weights, rounded to what a compact file holds of them."""
        values = rounded(self.values, self._count).half().float()
        self._used.copy_(values[self._nearest()])
        self._entries.put(self._used)
