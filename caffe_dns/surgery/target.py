"""Surgery to a target, a sparsity or a share of the MACs: what is kept when, and by what threshold.

The thresholds are computed from the weights at each renewal. Within a layer the largest weights are
kept, with the hysteresis of the official surgery. How many each of several layers keeps is found by
comparing their parameters' relative strengths; for a share of the multiply-accumulates (MACs),
divided by what each of these costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from caffe_dns import mask_rules
from caffe_dns.surgery.costs import PER_MILLISECOND
from caffe_dns.surgery.filters import Filters
from caffe_dns.surgery.masked_layers import MaskedLayer, Replayed
from caffe_dns.surgery.ranking import Ranking
from caffe_dns.surgery.stages import Stage


@dataclass(frozen=True)
class NetSize:
    """The size of a net before it is pruned; `macs` and `batch` are 0 and 1 if not counted.

    `macs` are those of a forward pass of `batch` items, of layers with masks and without.
    """

    parameters: int
    macs: int = 0
    batch: int = 1


@dataclass(frozen=True)
class Group:
    """Layers that together keep `start` parameters when a stage begins, and `end` at its end.

    With `in_macs`, these are multiply-accumulates. With `filters`, their filters are cut, and the
    numbers are what these cost.
    """

    masked_layers: Sequence[MaskedLayer]
    start: int
    end: int
    in_macs: bool = False
    filters: Filters | None = None


class Target:
    """Renews the masks of the layers that have to reach a sparsity or a share of the MACs."""

    def __init__(self, stage: Stage, groups: Sequence[Group]) -> None:
        self.groups = groups
        self._first, self._last = stage.surgery.start_iter, stage.end_iter
        self._first_ranked = stage.first_ranked
        self._interval, self._steepness = stage.surgery.interval, stage.surgery.steepness
        self._keepers = [_keeper(group) for group in groups]

    def is_due(self, iteration: int) -> bool:
        """Whether masks are renewed at an iteration, counted from the beginning of the stage."""
        if iteration == self._last:
            return True
        first = self._first
        within = max(first, self._first_ranked) <= iteration < self._last
        return within and (iteration - first) % self._interval == 0

    @torch.no_grad()
    def renew(self, iteration: int) -> None:
        """Renew all masks by the schedule's target for this iteration of the stage."""
        length = self._last - self._first
        progress = (iteration - self._first) / length if length else 1.0
        for group, keep in zip(self.groups, self._keepers, strict=True):
            keep(mask_rules.kept_at(progress, group.start, group.end, self._steepness))


def _keeper(group: Group) -> Callable[[int], None]:
    """The function that renews a group's masks to keep a number of parameters or the like."""
    if group.filters is None:
        return Ranking(group.masked_layers, in_macs=group.in_macs).keep
    device = group.masked_layers[0].device
    wanted = torch.zeros(1, dtype=torch.int64, device=device)
    renew = Replayed(partial(group.filters.keep, group.masked_layers, wanted), device)

    def keep(number: int) -> None:
        wanted.fill_(number)
        renew()

    return keep


def make_groups(
    stage: Stage,
    masked_layers: Sequence[MaskedLayer],
    kept: Mapping[str, int],
    size: NetSize,
    filters: Filters | None = None,
) -> list[Group]:
    """What a stage's sparsities mean in numbers of parameters, or its share of the MACs in MACs.

    `masked_layers` are all of the net, `kept` says how many parameters each keeps when the stage
    begins, or how many weights in a stage with a target in MACs. Raises CaffeError when the net
    cannot become that small.
    """
    if stage.surgery.HasField("macs"):
        return _groups_in_macs(stage, masked_layers, kept, size.macs, filters)
    if stage.surgery.HasField("latency"):
        return _groups_in_time(stage, filters)
    groups, together, others = [], [], []
    for masked_layer in masked_layers:
        settings = stage.settings_of(masked_layer.name)
        if settings is not None and settings.HasField("sparsity"):
            end = int((1 - settings.sparsity) * masked_layer.size + _ROUNDING)
            alone = _cut_by_filters(stage, [masked_layer], filters)
            groups.append(Group([masked_layer], kept[masked_layer.name], end, filters=alone))
        elif settings is not None and stage.shares_target(settings):
            together.append(masked_layer)
        else:
            others.append(masked_layer)
    if together:
        shared = _cut_by_filters(stage, together, filters)
        prunable = sum(masked_layer.size for masked_layer in together)
        if stage.surgery.HasField("compression"):
            masked = sum(masked_layer.size for masked_layer in masked_layers)
            elsewhere = sum(group.end for group in groups)
            elsewhere += sum(kept[masked_layer.name] for masked_layer in others)
            elsewhere += size.parameters - masked
            least = _least(stage, together, shared)
            end = _left_for(stage, size.parameters, elsewhere, least)
        else:
            end = int((1 - stage.surgery.sparsity) * prunable + _ROUNDING)
        start = sum(kept[masked_layer.name] for masked_layer in together)
        groups.append(Group(together, start, end, filters=shared))
    return groups


#: 1 - 0.99 is a little less than 0.01.
_ROUNDING = 1e-6


def _left_for(stage: Stage, parameters: int, elsewhere: int, least: int) -> int:
    left = int(parameters / stage.surgery.compression + _ROUNDING) - elsewhere
    if left < least:
        most = parameters / (elsewhere + least)
        raise stage.error(
            f"{stage.surgery.compression:g} times smaller is out of reach: of {parameters} "
            f"parameters, {elsewhere} stay in any case; at most {most:.4g} times",
            "compression",
        )
    return left


def _groups_in_macs(
    stage: Stage,
    masked_layers: Sequence[MaskedLayer],
    kept: Mapping[str, int],
    macs: int,
    filters: Filters | None,
) -> list[Group]:
    together = [layer for layer in masked_layers if stage.settings_of(layer.name) is not None]
    if not together:
        return []
    left = {layer.name: layer.uses * kept[layer.name] for layer in masked_layers}
    start = sum(left[layer.name] for layer in together)
    masked = sum(layer.uses * layer.weights for layer in masked_layers)
    elsewhere = macs - masked + sum(left.values()) - start
    end = int(stage.surgery.macs * macs + _ROUNDING) - elsewhere
    shared = _cut_by_filters(stage, together, filters)
    least = _least(stage, together, shared, in_macs=True)
    if end < least:
        possible = math.ceil((elsewhere + least) / macs * 1e4) / 1e4
        raise stage.error(
            f"{stage.surgery.macs:g} of the multiply-accumulates is out of reach: "
            f"{elsewhere / macs:.4g} of them stay in any case, and a "
            f"{'weight' if shared is None else 'filter'} of each layer; "
            f"at least {possible:g}",
            "macs",
        )
    return [Group(together, start, end, in_macs=True, filters=shared)]


def _groups_in_time(stage: Stage, filters: Filters | None) -> list[Group]:
    """In nanoseconds; the schedule starts from the dense net."""
    if filters is None:
        return []
    layers, end = filters.masked_layers, int(stage.surgery.latency * PER_MILLISECOND)
    if end < (least := filters.least(layers)):
        possible = math.ceil(least / PER_MILLISECOND * 1e4) / 1e4
        raise stage.error(
            f"{stage.surgery.latency:g} ms is out of reach: with a filter of each layer the net "
            f"takes {possible:g}",
            "latency",
        )
    return [Group(layers, filters.dense(), end, filters=filters)]


def _cut_by_filters(
    stage: Stage, layers: Sequence[MaskedLayer], filters: Filters | None
) -> Filters | None:
    """`filters` if the filters of these layers are cut. Raises CaffeError if those of some are."""
    cut = [filters is not None and layer in filters.masked_layers for layer in layers]
    if any(cut) and not all(cut):
        raise stage.error(
            "layers that share a target are all pruned by filters, or none", "pattern"
        )
    return filters if any(cut) else None


def _least(
    stage: Stage, layers: Sequence[MaskedLayer], filters: Filters | None, *, in_macs: bool = False
) -> int:
    """The parameters or MACs that these layers keep at least."""
    if filters is not None:
        return filters.least(layers)
    return sum(
        layer.unit_size(stage.pattern_of(layer.name)) * (layer.uses if in_macs else 1)
        for layer in layers
    )
