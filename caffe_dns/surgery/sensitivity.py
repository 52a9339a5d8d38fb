"""How much accuracy each layer of a trained net loses at which sparsity, without training.

Layers are pruned one at a time by their own surgery rule and the net is scored; the curves give
thresholds for all layers together, which are scored as well. Tables, pictures and definitions of
the results are made elsewhere (`reports.sensitivity`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.layers.score import Accuracy
from caffe_dns.net import Net
from caffe_dns.net.wiring import Step

_Layer = TypeVar("_Layer", bound="AdjustableLayer")
#: Shares of the weights to prune.
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)

#: The means of equal accuracies, added up in different orders, differ by less.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Objective:
    """What tells a good net from a bad one: an accuracy, or, where there is none, the loss."""

    name: str
    is_loss: bool
    #: Blobs and their weights; the score is the weighted sum of all their elements.
    weights: Mapping[str, float]

    def score(self, blobs: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([w * blobs[name].sum() for name, w in self.weights.items()]).sum()

    def fall(self, score: float, dense: float) -> float:
        """How much worse `score` is than `dense`: in accuracy, or as a share of the dense loss."""
        if self.is_loss:
            return (score - dense) / max(abs(dense), 1e-12)
        return dense - score


@dataclass(frozen=True)
class Point:
    """A layer under one setting: how many of its weights are pruned, and the net's score then."""

    #: The share of the weights that was to be pruned; ties may prune more.
    share: float
    setting: float
    pruned: int
    #: The pruned weights' part of the sum of squares.
    energy: float
    score: float


@dataclass(frozen=True)
class Curve:
    """The points of one layer, from few pruned weights to many.

    `setting` names what their settings are: threshold or c_rate.
    """

    layer: str
    setting: str
    total: int
    points: list[Point]
    #: Other layers that use the same weight.
    sharers: list[str] = field(default_factory=list)

    def sparsity(self, point: Point) -> float:
        return point.pruned / self.total


@dataclass(frozen=True)
class Study:
    """What was measured on `batches` batches of the test data; `dense` is the score as loaded."""

    objective: Objective
    batches: int
    dense: float
    curves: list[Curve]

    def holds(self, score: float, limit: float) -> bool:
        """Whether a net of this score loses at most `limit` (never, if it is not a number)."""
        return self.objective.fall(score, self.dense) <= limit + _ROUNDING


#: For each layer a point to prune it at, or None for a layer to spare.
Choice = dict[str, Point | None]


@dataclass(frozen=True)
class Proposal:
    """A choice that loses at most `limit`, and the score of the net pruned by it."""

    limit: float
    points: Choice
    score: float


def find_objective(net: Net) -> Objective:
    """The accuracy of the best answer alone, the last one if there are several; else the loss."""
    layers = [step.layer for step in net.steps if isinstance(step.layer, Accuracy)]
    if layers:
        top_k = min(layer.top_k for layer in layers)
        layer = [layer for layer in layers if layer.top_k == top_k][-1]
        blob = layer.param.top[0]
        return Objective(blob, False, {blob: 1.0})
    if net.loss_weights:
        name = next(iter(net.loss_weights)) if len(net.loss_weights) == 1 else "loss"
        return Objective(name, True, dict(net.loss_weights))
    raise CaffeError("the phase TEST has neither an Accuracy layer nor a loss to score by")


class AdjustableLayer(Protocol):
    """A layer whose weights can be changed by a setting, and put back.

    What is said here of pruned weights holds for what else is saved: `total` is all that could be.
    """

    @property
    def field(self) -> str:
        """What a setting is called."""
        ...

    @property
    def sharers(self) -> list[str]:
        """Other layers that use the same weight."""
        ...

    @property
    def name(self) -> str: ...

    @property
    def total(self) -> int: ...

    def settings_for(self, shares: Sequence[float]) -> list[float]:
        """The settings that prune these shares."""
        ...

    def apply(self, setting: float) -> None:
        """Put the layer's blobs as they are under this setting."""
        ...

    def restore(self) -> None:
        """Put the layer's blobs as they were."""
        ...

    def effect(self, setting: float) -> tuple[int, float]:
        """How much is pruned under this setting, and its part of the sum of squares."""
        ...


class Bench:
    """Runs the part of a net that its objective depends on, over and over, on the same batches."""

    def __init__(self, net: Net, objective: Objective, batches: int) -> None:
        self.net = net
        self.objective = objective
        self.batches = batches
        needed = _needed_steps(net, objective)
        self._sources = [step for step in needed if not step.bottoms]
        self._steps = [step for step in needed if step.bottoms]
        if not any(step.layer.is_source for step in self._sources):
            raise CaffeError("the phase TEST has no layer that reads data to score on")
        self._starts = {
            step.layer.param.name: index for index, step in reversed([*enumerate(self._steps)])
        }

    def depends_on(self, layer: AdjustableLayer) -> bool:
        """Whether the objective depends on this layer at all."""
        return layer.name in self._starts

    @torch.no_grad()
    def score_alone(
        self,
        layers: Sequence[AdjustableLayer],
        settings: Sequence[Sequence[float]],
        advance: Callable[[int], None],
    ) -> tuple[float, list[list[float]]]:
        """The score as loaded, and with each prunable layer alone under each of its settings.

        What lies before the pruned layer is computed once a batch. The layers are in the net's
        order. `advance` is told how many batches are done.
        """
        device = self.net.context.device
        dense = torch.zeros((), dtype=torch.float64, device=device)
        totals = [torch.zeros(len(some), dtype=dense.dtype, device=device) for some in settings]
        self.rewind()
        for batch in range(self.batches):
            blobs = self._read()
            reached = 0
            for layer, some, total in zip(layers, settings, totals, strict=True):
                start = self._starts[layer.name]
                blobs = self._run(blobs, reached, start)
                reached = start
                for index, setting in enumerate(some):
                    layer.apply(setting)
                    total[index] += self._finish(blobs, start)
                layer.restore()
            dense += self._finish(blobs, reached)
            advance(batch + 1)
        return float(dense) / self.batches, [(t / self.batches).tolist() for t in totals]

    @torch.no_grad()
    def score_together(self, plan: Mapping[_Layer, float]) -> float:
        """The score with all the layers of a plan under their settings at once."""
        total = torch.zeros((), dtype=torch.float64, device=self.net.context.device)
        for layer, setting in plan.items():
            layer.apply(setting)
        self.rewind()
        for _ in range(self.batches):
            total += self._finish(self._read(), 0)
        for layer in plan:
            layer.restore()
        return float(total) / self.batches

    def rewind(self) -> None:
        """Begin again with the first record, and with the first of the random draws."""
        self.net.context.passes = 0
        for step in self._sources:
            if isinstance(step.layer, BatchDataLayer):
                step.layer.seek(0)

    def _read(self) -> dict[str, Tensor]:
        blobs: dict[str, Tensor] = {}
        for step in self._sources:
            _run_step(step, blobs)
        self.net.context.passes += 1
        return blobs

    def _run(self, given: Mapping[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
        """Run the steps from `start` to before `stop`; returns the blobs needed from there on."""
        blobs = dict(given)
        for step in self._steps[start:stop]:
            _run_step(step, blobs)
        wanted = {blob for step in self._steps[stop:] for blob in step.bottoms}
        wanted |= self.objective.weights.keys()
        return {name: blob for name, blob in blobs.items() if name in wanted}

    def _finish(self, blobs: Mapping[str, Tensor], start: int) -> Tensor:
        return self.objective.score(self._run(blobs, start, len(self._steps)))


def measure(
    bench: Bench,
    layers: Sequence[AdjustableLayer],
    advance: Callable[[int], None] = lambda done: None,
    shares: Sequence[float] = SHARES,
) -> Study:
    """Score the net with each layer alone pruned by each of these shares."""
    settings = [layer.settings_for(shares) for layer in layers]
    dense, scores = bench.score_alone(layers, settings, advance)
    curves = []
    for layer, some, found in zip(layers, settings, scores, strict=True):
        points = [
            Point(share, setting, *layer.effect(setting), score)
            for share, setting, score in zip(shares, some, found, strict=True)
        ]
        # Where many weights are equal, several shares prune the same ones.
        distinct = {point.pruned: point for point in points}
        kept = list(distinct.values())
        curves.append(Curve(layer.name, layer.field, layer.total, kept, layer.sharers))
    return Study(bench.objective, bench.batches, dense, curves)


def propose(
    bench: Bench, layers: Sequence[AdjustableLayer], study: Study, limit: float
) -> Proposal:
    """Settings for all layers that together lose at most `limit`, as large as a search finds them.

    Layers that lose nothing alone may lose much together, so the choices are scored.
    """
    best = Proposal(limit, {curve.layer: None for curve in study.curves}, study.dense)
    choices = _choices(study, limit)
    low, high = 0, len(choices)
    while low < high:  # the choices grow milder, so halve
        middle = (low + high) // 2
        choice = choices[middle]
        plan = {s: point.setting for s in layers if (point := choice[s.name]) is not None}
        score = bench.score_together(plan)
        if study.holds(score, limit):
            best = Proposal(limit, choice, score)
            high = middle
        else:
            low = middle + 1
    return best


def _choices(study: Study, limit: float) -> list[Choice]:
    """Points for all layers, from those that prune the most down to those that cost the least."""
    choices: list[Choice] = []
    for price in np.geomspace(1e-3, 1e2, 60):
        choice = {c.layer: _best_point(c, study, limit, float(price)) for c in study.curves}
        if choice not in choices:
            choices.append(choice)
    return choices


def _best_point(curve: Curve, study: Study, limit: float, price: float) -> Point | None:
    """Where the layer's sparsity is worth most when what it costs has this price.

    It costs what the net loses, as a part of `limit`, and the energy of the pruned weights: layers
    that lose nothing alone may lose much together. Layers count by the root of their size, so that
    small ones are not forgotten beside large ones.
    """
    size = math.sqrt(curve.total / sum(other.total for other in study.curves))
    best, best_worth = None, 0.0
    for point in curve.points:
        fall = study.objective.fall(point.score, study.dense)
        cost = max(fall, 0.0) / max(limit, _ROUNDING) + point.energy
        worth = size * curve.sparsity(point) - price * cost
        if worth > best_worth:
            best, best_worth = point, worth
    return best


def _needed_steps(net: Net, objective: Objective) -> list[Step]:
    """The steps that the objective's blobs depend on, in the net's order."""
    wanted = set(objective.weights)
    needed = []
    for step in reversed(net.steps):
        if wanted.intersection(step.tops):
            needed.append(step)
            wanted.update(step.bottoms)
    return needed[::-1]


def _run_step(step: Step, blobs: dict[str, Tensor]) -> None:
    tops = step.layer(*(blobs[blob] for blob in step.bottoms))
    blobs.update(zip(step.tops, (tops,) if isinstance(tops, Tensor) else tops, strict=True))
