"""Surgery on whole filters: a filter is cut together with the weights that read it.

What is left is a net of fewer channels: `--shrink` removes the others, exactly, also behind padding
and normalisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from caffe_dns import mask_rules
from caffe_dns.net import Net
from caffe_dns.net.channels import trace
from caffe_dns.surgery.costs import Costs
from caffe_dns.surgery.masked_layers import MaskedLayer


class Filters:
    """The layers of a stage whose filters are cut, and the layers that read the filters.

    A layer keeps all its filters if one is also read elsewhere, such as an output of the net, and
    otherwise at least the strongest one. Filters that a sum adds to each other are kept or cut
    together, with the strongest of them.
    """

    def __init__(self, net: Net, masked_layers: Sequence[MaskedLayer], costs: Costs) -> None:
        self.masked_layers = masked_layers
        self._costs = costs
        flow = trace(net, [masked_layer.layer for masked_layer in masked_layers])
        self._outputs = {m: flow.outputs[m.layer] for m in masked_layers}
        self._inputs = {m: flow.inputs[m.layer].to(m.device) for m in masked_layers}
        self._sets = flow.added().to(masked_layers[0].device)
        self.held = {m for m in masked_layers if m.layer in flow.held}
        #: The layers between them, and the outputs that reach each of their channels.
        self._between = {
            layer.name: numbers.to(masked_layers[0].device)
            for layer, numbers in flow.between.items()
        }
        self._fixed = costs.fixed([*(m.name for m in masked_layers), *self._between])
        #: What a filter and the weights that read it cost in the dense net.
        self._whole = self._find_costs()

    def renew(self, due: Iterable[MaskedLayer]) -> None:
        """Cut and splice the filters of these layers by their thresholds."""
        kept = {}
        for masked_layer in due:
            strengths = masked_layer.strengths()[0].view(-1)
            above = strengths > masked_layer.limit()
            kept[masked_layer] = above | (strengths == strengths.max())
        self._set(kept)

    def keep(self, group: Sequence[MaskedLayer], wanted: Tensor) -> None:
        """Keep as many filters as `group` may have at a cost of at most `wanted`.

        `wanted` is an int64 tensor of one element.
        """
        strengths = [m.strengths()[0].view(-1) for m in group]
        scores = torch.cat([self._scores(m, own) for m, own in zip(group, strengths, strict=True)])
        count = len(scores)
        order = scores.argsort(descending=True, stable=True)
        places = torch.empty_like(order)
        places[order] = torch.arange(count, device=scores.device)
        ranks = dict(zip(group, places.split([len(own) for own in strengths]), strict=True))
        since = self._since(ranks, count)
        numbers = torch.arange(1, count + 1, device=scores.device)
        number = (self._sum(group, since, numbers) <= wanted).sum()
        number = number.clamp(min=scores.isinf().sum())
        kept = {m: self._own(since, m) < number for m in group}
        for masked_layer, own in zip(group, strengths, strict=True):
            masked_layer.follow(own.masked_fill(kept[masked_layer], 0).max())
        self._set(kept)

    def keep_share(self, share: float) -> None:
        """Keep this share of each layer's filters, the first ones, and at least one."""
        self._set(
            {
                m: torch.arange(len(own), device=m.device) < max(1, math.ceil(share * len(own)))
                for m, own in self._outputs.items()
            }
        )

    def least(self, group: Sequence[MaskedLayer]) -> int:
        """What these layers cost with one filter each, or with all if they must keep all."""
        first = {m: torch.arange(len(own), device=m.device) for m, own in self._outputs.items()}
        return self._at_one(group, self._since(first, 1))

    def cost(self) -> int:
        """What all layers cost with the filters that they keep. Waits for the device."""
        return self._at_one(self.masked_layers, self._since({}, 1))

    def dense(self) -> int:
        """What all layers cost in the dense net."""
        return self._at_one(self.masked_layers, torch.zeros_like(self._sets))

    def _at_one(self, group: Sequence[MaskedLayer], since: Tensor) -> int:
        """The costs with the filters that are there from the first number on."""
        return int(self._sum(group, since, torch.ones_like(since[:1])))

    def _scores(self, masked_layer: MaskedLayer, strengths: Tensor) -> Tensor:
        if masked_layer in self.held:
            return torch.full_like(strengths, torch.inf)
        ordered, places = strengths.sort(descending=True, stable=True)
        cost = self._whole[masked_layer]
        shares = mask_rules.strength_per_cost(mask_rules.relative_strength(ordered), cost)
        return torch.empty_like(shares).scatter(0, places, shares)

    def _since(self, ranks: Mapping[MaskedLayer, Tensor], never: int) -> Tensor:
        """The number of stronger filters for each filter of all layers, and a 0 for no filter.

        A filter of another layer has 0 if it is kept, otherwise `never`.
        """
        found = []
        for m in self.masked_layers:
            if m in self.held:
                found.append(torch.zeros(len(self._outputs[m]), dtype=torch.int64, device=m.device))
            else:
                found.append(ranks[m] if m in ranks else never * ~m.filters_kept())
        each = torch.cat([*found, torch.zeros_like(found[0][:1])])
        return each.scatter_reduce(0, self._sets, each, "amin")[self._sets]

    def _own(self, since: Tensor, masked_layer: MaskedLayer) -> Tensor:
        """The part of one layer in a list for all filters."""
        own = self._outputs[masked_layer]
        return since[own.start : own.stop]

    def _sum(self, group: Sequence[MaskedLayer], since: Tensor, numbers: Tensor) -> Tensor:
        """What the layers of a group cost, for each number of kept filters."""
        total = torch.full_like(numbers, self._fixed)
        for m in group:
            outputs = torch.searchsorted(self._own(since, m).sort().values, numbers)
            arriving = since[self._inputs[m]].amin(1).sort().values
            total += self._costs.of(m, outputs, torch.searchsorted(arriving, numbers))
        for name, channels in self._between.items():
            there = torch.searchsorted(since[channels].amin(1).sort().values, numbers)
            total += self._costs.between(name, there / len(channels))
        return total

    def _set(self, kept: Mapping[MaskedLayer, Tensor]) -> None:
        """Set the masks, for layers whose kept filters have changed."""
        there = self._since({m: (~own).long() for m, own in kept.items()}, 1) == 0
        for masked_layer in self.masked_layers:
            inputs = there[self._inputs[masked_layer]].any(1)
            masked_layer.keep_filters(self._own(there, masked_layer), inputs)

    def _find_costs(self) -> dict[MaskedLayer, int]:
        dense = {m: self._dense(m) for m in self.masked_layers}
        sizes = [len(own) for own in self._outputs.values()]
        costs = [dense[m] / size for m, size in zip(self.masked_layers, sizes, strict=True)]
        # The layer of each output; those of no layer come last.
        makers = torch.arange(len(sizes) + 1).repeat_interleave(torch.tensor([*sizes, 1]))
        makers = makers.to(self._sets.device)
        for reader, inputs in self._inputs.items():
            reads = makers.new_zeros((len(inputs), len(sizes) + 1), dtype=torch.bool)
            arriving = reads.scatter_(1, makers[inputs], True).sum(0).tolist()[:-1]
            for place, (number, size) in enumerate(zip(arriving, sizes, strict=True)):
                costs[place] += dense[reader] * number / len(inputs) / size
        rounded = (max(1, round(cost)) for cost in costs)
        return dict(zip(self.masked_layers, rounded, strict=True))

    def _dense(self, masked_layer: MaskedLayer) -> int:
        """What a layer costs in the dense net."""
        whole = len(self._outputs[masked_layer]), len(self._inputs[masked_layer])
        outputs, inputs = (torch.tensor([n], device=masked_layer.device) for n in whole)
        return int(self._costs.of(masked_layer, outputs, inputs))
