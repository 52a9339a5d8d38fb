"""The strongest parameters of several layers: which they are, and the thresholds that keep them.

Sorting all parameters takes as long as a training step. A histogram of each layer tells which of
them are kept, and which are not, wherever the values are in its bins; only those in between are
sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from caffe_dns import kernels
from caffe_dns.surgery.masked_layers import MaskedLayer, Replayed

if TYPE_CHECKING:
    from caffe_dns.kernels.contest import ContestKernel
    from caffe_dns.kernels.cut import CutKernel

#: A bin has the strengths of one exponent and of the same first 4 bits of the mantissa.
_SHIFT, BINS = 19, 4096
#: Margin that keeps bounds from bins valid in spite of rounding.
_SLACK = 1e-5
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class _Contest:
    """The strengths of all layers, concatenated, and which of them have to be ranked.

    Of each layer, `numbers` are certainly kept, with `squares` as the sum of their squares; they
    cost `cost` in all. `below` is the largest strength of each layer that is certainly pruned, -1
    if there is none. Strengths are divided by the layer's entry of `scales` before being squared.
    """

    values: Tensor
    scales: Tensor
    contested: Tensor
    numbers: Tensor
    squares: Tensor
    cost: Tensor
    below: Tensor


class Ranking:
    """Ranks the parameters of several layers, or the units of their patterns, in one order.

    Across layers, the score of a strength is its square over the sum of the squares in its layer
    that are no smaller (layer-adaptive magnitude, Lee et al., ICLR 2021) or, by the loss, its
    square. If costs differ, the score is divided by the cost: keeping the most within a budget is a
    knapsack problem, which is filled by value per cost (Dantzig, 1957). The strongest of each layer
    come first, so that no layer is emptied while there is one for each. A parameter costs 1, or
    with `in_macs` as many multiplications as it is used for.
    """

    def __init__(self, layers: Sequence[MaskedLayer], *, in_macs: bool = False) -> None:
        self._layers = layers
        self._by_loss = layers[0].goes_by_loss  # as all layers of a stage are
        #: The cost of each strength, and of each unit of a layer; None where all cost 1.
        self._costs: Tensor | None = None
        self._unit_costs: Tensor | None = None
        self._sizes = [layer.size for layer in layers]
        device = layers[0].device
        if in_macs or any(layer.pattern is not None for layer in layers):
            units = [
                layer.unit_size(layer.pattern) * (layer.uses if in_macs else 1) for layer in layers
            ]
            self._unit_costs = torch.tensor(units, dtype=torch.float64, device=device)
            costs = [layer.costs(in_macs=in_macs) for layer in layers]
            self._sizes = [len(own) for own in costs]
            self._costs = torch.cat(costs)
        #: The layers' strengths for each mask, and concatenated, while masks are renewed.
        self._strengths: list[list[Tensor]] = []
        self._values: Tensor | None = None
        self._ends = torch.tensor(self._sizes, device=device).cumsum(0)
        self._wanted = torch.zeros((), dtype=torch.int64, device=device)
        self._thresholds = layers[0].layer.blobs[0].new_zeros(len(layers))
        self._contest_kernel: ContestKernel | None = None
        self._cut_kernel: CutKernel | None = None
        self._find = Replayed(self._find_contest, device)
        self._prune = Replayed(self._prune_layers, device)

    def keep(self, wanted: int) -> None:
        """Renew the masks so that what the layers keep costs this much, or a little less."""
        self._wanted.fill_(wanted)
        contest = self._find()
        self._thresholds.copy_(self._rank(contest))
        self._values = contest.values
        self._prune()
        self._strengths, self._values = [], None

    def _prune_layers(self) -> None:
        assert self._values is not None
        if not self._can_cut(self._values):
            for layer, threshold, own in zip(
                self._layers, self._thresholds, self._strengths, strict=True
            ):
                layer.prune_below(threshold, own)
            return
        if self._cut_kernel is None:
            from caffe_dns.kernels.cut import CutKernel, CutMask

            self._cut_kernel = CutKernel(
                [
                    CutMask(mask, layer.spliced, number)
                    for number, layer in enumerate(self._layers)
                    for mask in layer.layer.mask_blobs()
                ]
            )
        self._cut_kernel.run(self._values, self._thresholds)
        for layer, threshold in zip(self._layers, self._thresholds.clamp(min=0), strict=True):
            layer.follow(threshold)

    def _can_cut(self, values: Tensor) -> bool:
        """Whether strengths are laid out like masks, so that a kernel can renew all of these."""
        return self._has_kernels(values) and all(
            layer.pattern is None
            and all(
                _lie_alike(mask, own)
                for mask, own in zip(layer.layer.mask_blobs(), strengths, strict=True)
            )
            for layer, strengths in zip(self._layers, self._strengths, strict=True)
        )

    @staticmethod
    def _has_kernels(values: Tensor) -> bool:
        return kernels.wanted(values.device) and values.dtype == torch.float32

    def _limit(self, scores: Tensor, costs: Tensor | None, spent: Tensor | int = 0) -> Tensor:
        """The first score that is not kept, one element; below all scores if all are kept."""
        scores, order = scores.reshape(-1).sort(descending=True)
        if costs is None:
            total = torch.arange(1, len(scores) + 1, device=scores.device)
        else:
            total = costs.reshape(-1)[order].cumsum(0)
        kept = (total + spent <= self._wanted).sum().view(1)
        return pad(scores, (0, 1), value=-1.0)[kept]

    # What is certain ----------------------------------------------------------------------------

    def _find_contest(self) -> _Contest:
        """Measure the strengths, and find those that have to be ranked."""
        self._strengths = [layer.strengths() for layer in self._layers]
        values = torch.cat([_in_memory(s) for own in self._strengths for s in own])
        of_layers = values.split(self._sizes)
        scales = torch.stack([own.amax() for own in of_layers]).double()
        scales = torch.ones_like(scales) if self._by_loss else scales.clamp(min=_TINY)
        if len(values) <= BINS * len(of_layers):
            nothing = torch.zeros_like(self._ends)
            everything = torch.ones_like(values, dtype=torch.bool)
            none = torch.full_like(self._thresholds, -1.0)
            return _Contest(
                values, scales, everything, nothing, nothing.double(), nothing.sum(), none
            )
        numbers, costs = self._histograms(values)
        kept, pruned = self._certain(numbers, costs, scales)
        edges = _edges(values.device)
        bounds = edges[pruned.sum(1)], edges[BINS - kept.sum(1)]
        contested, squares, below = self._divide(values, *bounds, scales)
        return _Contest(
            values,
            scales,
            contested,
            numbers=(numbers * kept).sum(1),
            squares=squares,
            cost=(costs * kept).sum(),
            below=below,
        )

    def _divide(
        self, values: Tensor, low: Tensor, high: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Which are contested, the squares of those surely kept, the largest surely pruned."""
        of_layers = values.split(self._sizes)
        if self._has_kernels(values):
            if self._contest_kernel is None:
                from caffe_dns.kernels.contest import ContestKernel

                self._contest_kernel = ContestKernel(of_layers)
            return self._contest_kernel.run(values, low, high, scales)
        contested, squares, below = [], [], []
        for number, own in enumerate(of_layers):
            rounded = own.float()  # rounded as for the bins
            above = rounded >= high[number]
            contested.append((rounded >= low[number]) & ~above)
            squares.append((own * above / scales[number]).square().sum(dtype=torch.float64))
            below.append(own.masked_fill(rounded >= low[number], -1.0).amax())
        return torch.cat(contested), torch.stack(squares), torch.stack(below)

    def _histograms(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """How many strengths each bin of each layer has, and what they cost; layers x bins."""
        bins = (values.float().view(torch.int32) >> _SHIFT).clamp_(0, BINS - 1)
        numbers = torch.stack([_count(own) for own in bins.split(self._sizes)])
        if self._costs is None:
            return numbers, numbers
        costs = torch.zeros_like(numbers)
        for row, own, each in zip(
            costs, bins.split(self._sizes), self._costs.split(self._sizes), strict=True
        ):
            row.scatter_add_(0, own.long(), each)
        return numbers, costs

    def _certain(self, numbers: Tensor, costs: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        """The bins that are kept completely, and those pruned completely, bool; layers x bins."""
        squares = (_edges(numbers.device) / scales.view(-1, 1)).square()
        least, most = squares[:, :-1], squares[:, 1:]
        if not self._by_loss:
            sums = _sums_from(numbers * most).clamp(min=_TINY), _sums_after(numbers * least)
            least, most = least / sums[0], most / (sums[1] + most)
        if self._unit_costs is not None:
            least, most = (score / self._unit_costs.view(-1, 1) for score in (least, most))
        # The strongest comes first, and no bin is above its own.
        most = most.masked_fill(_sums_after(numbers) == 0, torch.inf)
        kept = least > self._limit(most, costs) * (1 + _SLACK)
        pruned = most < self._limit(least, costs) * (1 - _SLACK)
        return kept, pruned

    # What is ranked -----------------------------------------------------------------------------

    def _rank(self, contest: _Contest) -> Tensor:
        """The largest strength of each layer that is not kept; -1 if there is none."""
        places = contest.contested.nonzero().view(-1)
        owners = torch.bucketize(places, self._ends, right=True)
        order = contest.values[places].argsort(descending=True)
        order = order[owners[order].argsort(stable=True)]
        places, owners = places[order], owners[order]
        values = contest.values[places]
        layers = torch.arange(len(self._layers), device=owners.device)
        starts, ends = (torch.searchsorted(owners, layers, right=end) for end in (False, True))
        scores = (values.clamp(min=0) / contest.scales[owners]).square()
        if not self._by_loss:
            sums = scores.cumsum(0)
            before = pad(sums, (1, 0))[starts] - contest.squares
            scores = scores / (sums - before[owners]).clamp(min=_TINY)
        if self._unit_costs is not None:
            scores = scores / self._unit_costs[owners]
        first = torch.where(contest.numbers == 0, starts, len(values))
        scores = pad(scores, (0, 1)).index_fill(0, first, torch.inf)[:-1]
        costs = None if self._costs is None else self._costs[places]
        kept = scores > self._limit(scores, costs, contest.cost)
        numbers = pad(kept.cumsum(0), (1, 0))
        after = starts + numbers[ends] - numbers[starts]
        return torch.where(after < ends, pad(values, (0, 1))[after], contest.below)


def _lies_without_gaps(values: Tensor) -> bool:
    return torch.ops.aten.is_non_overlapping_and_dense(values)


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of the same shape have the same dense memory layout."""
    axes = [axis for axis, size in enumerate(one.shape) if size > 1]
    return _lies_without_gaps(one) and all(one.stride(a) == other.stride(a) for a in axes)


def _in_memory(values: Tensor) -> Tensor:
    """All values, in memory order if that needs no copy."""
    if _lies_without_gaps(values):
        return values.as_strided((values.numel(),), (1,))
    return values.reshape(-1)


def _count(bins: Tensor) -> Tensor:
    """How often each number from 0 to BINS - 1 occurs, int64 [BINS]."""
    # Sums of whole numbers are the same in any order, but PyTorch refuses histc for its atomics.
    if bins.is_cuda and not torch.are_deterministic_algorithms_enabled():
        # In the shared memory of a block of threads: the whole GPU would wait for the few bins
        # that most strengths are in.
        return torch.histc(bins, BINS, 0, BINS).long()
    one = torch.ones(1, dtype=torch.int64, device=bins.device)
    return one.new_zeros(BINS).scatter_add_(0, bins.long(), one.expand(len(bins)))


def _edges(device: torch.device) -> Tensor:
    """Where the bins begin, and where the last one ends, float64 [BINS + 1]."""
    edges = (torch.arange(BINS, dtype=torch.int32, device=device) << _SHIFT).view(torch.float32)
    largest = torch.finfo(torch.float32).max
    return pad(edges, (0, 1), value=torch.inf).nan_to_num(largest, posinf=largest).double()


def _sums_from(numbers: Tensor) -> Tensor:
    """The sum of each column and all columns after it."""
    return numbers.flip(1).cumsum(1).flip(1)


def _sums_after(numbers: Tensor) -> Tensor:
    return pad(_sums_from(numbers)[:, 1:], (0, 1))
