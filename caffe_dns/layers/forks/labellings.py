"""Sequences of labels, shorter than their input (CTC): losses and accuracies.

CtcLoss and LabelsequenceAccuracy (DeepDetect), WarpCTCLoss and CTCGreedyDecoder (caffe_ocr).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, LossLayer, Shape, layer_types
from caffe_dns.layers.checks import check_indices, check_labels
from caffe_dns.proto.fields import refuse_fields

#: The types of layers that read a `ctc_loss_param`, and what each alone reads of it.
_OF_THEIR_OWN = {
    "CtcLoss": ("alphabet_size", "time_step", "blank_label"),
    "WarpCTCLoss": ("blank_index",),
}


def _mean_cost(
    scores: Tensor, labels: Tensor, counted: Tensor, steps: Tensor, blank: int
) -> Tensor:
    """The mean cost of lines, with the gradient of the sum.

    `scores` are T x N x C, of which each line has so many `steps` [N]; `labels` N x L, of which
    those `counted` are its own. A line without room costs nothing.
    """
    total = F.ctc_loss(
        F.log_softmax(scores, 2),
        labels[counted],
        steps,
        counted.sum(1),
        blank=blank,
        reduction="sum",
        zero_infinity=True,
    )
    return total + (total / len(labels) - total).detach()


def _read(best: Tensor, blank: int, *, merge: bool = True) -> Tensor:
    """Which of the best labels [N, T] are read: no blanks, and with `merge` no repetitions."""
    begins = F.pad(best[:, 1:] != best[:, :-1], (1, 0), value=True)
    return (begins if merge else torch.ones_like(begins)) & (best != blank)


@layer_types.register("CtcLoss")
class CtcLoss(LossLayer):
    """Connectionist temporal classification, averaged over the batch (`ctc_loss_layer.cpp`).

    Bottoms: scores T x N x C, of which `time_step` steps count, and labels N x L, in which blanks
    are left out. The gradient, as there, is that of the sum over the batch. A line that has no room
    in the steps costs nothing.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = self.param.ctc_loss_param
        refuse_fields(self.options, "ctc_loss_param", _OF_THEIR_OWN, "CtcLoss")
        for name in ("alphabet_size", "time_step"):
            if getattr(self.options, name) < 1:
                raise self.error("must be given and positive", f"ctc_loss_param.{name}")
        if not 0 <= self.options.blank_label < self.options.alphabet_size:
            raise self.error("is none of the labels", "ctc_loss_param.blank_label")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = map(tuple, bottom_shapes)
        if len(scores) != 3 or scores[2] != self.options.alphabet_size:
            raise self.error(f"T x N x {self.options.alphabet_size} would be right, not {scores}")
        if scores[0] < self.options.time_step:
            raise self.error(f"the bottom has {scores[0]} steps", "ctc_loss_param.time_step")
        if len(labels) < 2 or labels[0] != scores[1]:
            raise self.error(f"{scores[1]} x L labels would be right, not {labels}", "bottom")
        return [()]

    def forward(self, *bottoms: Tensor) -> Tensor:
        labels = bottoms[1].flatten(1).long()
        check_labels(self, labels, self.options.alphabet_size)
        shown = labels != self.options.blank_label
        steps = torch.full((len(labels),), self.options.time_step, device=labels.device)
        scores = bottoms[0][: self.options.time_step]
        return _mean_cost(scores, labels, shown, steps, self.options.blank_label)


@layer_types.register("WarpCTCLoss")
class WarpCTCLoss(LossLayer):
    """Connectionist temporal classification, averaged over the batch (`warp_ctc_loss_layer.cpp`).

    Bottoms: scores T x N x C, and labels N x L, in which blanks are left out; or scores, indicators
    T x N, which are 0 where another sequence begins, and labels T x N up to the first negative one,
    which count from 1 where the blank is 0; or scores, numbers of steps [N] and of labels [N], and
    labels L x N. The gradient, as there, is that of the sum over the batch.
    """

    bottoms = (2, 4)
    no_force_backward = (1, 2, 3)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_fields(self.param.ctc_loss_param, "ctc_loss_param", _OF_THEIR_OWN, "WarpCTCLoss")
        self.blank = self.param.ctc_loss_param.blank_index

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, *others = map(tuple, bottom_shapes)
        if len(scores) < 3 or scores[3:] not in ((), (1,)):
            raise self.error(f"T x N x C would be right, not {scores}", "bottom")
        steps, lines, classes = scores[:3]
        if not 0 <= self.blank < classes:
            raise self.error("is none of the labels", "ctc_loss_param.blank_index")
        wanted: list[tuple[int | None, ...]] = [(lines, None)]
        if len(others) == 2:
            wanted = [(steps, lines), (steps, lines)]
        elif len(others) == 3:
            wanted = [(lines,), (lines,), (None, lines)]
        for shape, expected in zip(others, wanted, strict=True):
            pairs = zip(shape, expected, strict=False)
            if len(shape) < len(expected) or any(b not in (a, None) for a, b in pairs):
                text = " x ".join("L" if each is None else str(each) for each in expected)
                raise self.error(f"{text} would be right, not {shape}", "bottom")
        return [()]

    def forward(self, *bottoms: Tensor) -> Tensor:
        scores = bottoms[0].flatten(2)
        labels, counted, steps = self._lines(len(scores), bottoms[1:])
        check_labels(self, labels.where(counted, self.blank), scores.shape[2])
        return _mean_cost(scores, labels, counted, steps, self.blank)

    def _lines(self, steps: int, bottoms: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Labels N x L, which of them count, and the numbers of steps [N], of so many at most."""
        if len(bottoms) == 1:
            labels = bottoms[0].flatten(1).long()
            return labels, labels != self.blank, labels.new_full((len(labels),), steps)
        labels = bottoms[-1].flatten(1).t()
        if len(bottoms) == 3:
            numbers, lengths = (bottom.flatten().long() for bottom in bottoms[:2])
            check_indices(self, numbers, steps + 1, "number of steps")
            check_indices(self, lengths, labels.shape[1] + 1, "number of labels")
            places = torch.arange(labels.shape[1], device=labels.device)
            return labels.long(), places < lengths[:, None], numbers
        counted = (labels >= 0).cumprod(1).bool()
        goes_on = (bottoms[0].flatten(1) + 0.5).long() != 0
        numbers = 1 + goes_on[1:].cumprod(0).sum(0)
        labels = (labels + 0.5).long() + (self.blank == 0)
        return labels, counted, numbers.where(counted.any(1), 0)


@layer_types.register("LabelsequenceAccuracy")
class LabelsequenceAccuracy(Layer):
    """The share of lines that are read without a mistake (`labelsequence_accuracy_layer.cpp`).

    Bottoms: scores N x T x C, whose best labels count once each time that they begin, and labels
    N x L; blanks are left out of both.
    """

    needs_numbers = ALL_BOTTOMS

    bottoms = (2, 2)
    no_force_backward = (0, 1)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = map(tuple, bottom_shapes)
        if len(scores) != 3 or len(labels) < 2 or scores[0] != labels[0]:
            raise self.error(
                f"N x T x C and N x L would be right, not {scores}, {labels}", "bottom"
            )
        return [()]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        blank = self.param.labelsequence_accuracy_param.blank_label
        best = bottoms[0].argmax(2)
        begins = _read(best, blank)
        lines = bottoms[1].flatten(1).long()
        right = [
            torch.equal(read[new], line[line != blank])
            for read, new, line in zip(best, begins, lines, strict=True)
        ]
        return bottoms[0].new_tensor(right).mean()


@layer_types.register("CTCGreedyDecoder")
class CTCGreedyDecoder(Layer):
    """The lines that the best label of each step make (`ctc_decoder_layer.cpp`).

    Bottom: scores T x N x C; top N x T x 1 x 1, filled up with -1. With labels N x L, up to the
    first negative one and without blanks, the top is 1 x 2 x 1 x 1: 1 minus the mean distance, as a
    share of the longer line, and the share of lines that are right. Lines without labels that are
    read so count as 0 in either.
    """

    needs_numbers = ALL_BOTTOMS

    bottoms = (1, 2)
    no_force_backward = (0, 1)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores = tuple(bottom_shapes[0])
        if len(scores) < 3:
            raise self.error(f"T x N x C would be right, not {scores}", "bottom")
        blank = self.param.ctc_decoder_param.blank_index
        self.blank = scores[2] - 1 if blank < 0 else blank
        if len(bottom_shapes) == 1:
            return [(scores[1], scores[0], 1, 1)]
        labels = tuple(bottom_shapes[1])
        if len(labels) < 2 or labels[0] != scores[1]:
            raise self.error(f"{scores[1]} x L labels would be right, not {labels}", "bottom")
        return [(1, 2, 1, 1)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        best = bottoms[0].argmax(2).flatten(1).t()
        merge = self.param.ctc_decoder_param.ctc_merge_repeated
        counted = _read(best, self.blank, merge=merge)
        found = [line[shown] for line, shown in zip(best, counted, strict=True)]
        if len(bottoms) == 1:
            top = bottoms[0].new_full((*best.shape, 1, 1), -1)
            for row, line in zip(top, found, strict=True):
                row[: len(line), 0, 0] = line.to(top.dtype)
            return top
        labels = (bottoms[1].flatten(1) + 0.5).long()
        ends = (bottoms[1].flatten(1) >= 0).cumprod(1).bool() & (labels != self.blank)
        wanted = [line[shown].tolist() for line, shown in zip(labels, ends, strict=True)]
        return (
            bottoms[0]
            .new_tensor(_accuracies(wanted, [line.tolist() for line in found]))
            .view(1, 2, 1, 1)
        )


def _accuracies(wanted: Sequence[list[int]], found: Sequence[list[int]]) -> tuple[float, float]:
    """1 minus the mean share of labels that differ, and the share of lines that do not."""
    pairs = [pair for pair in zip(wanted, found, strict=True) if any(pair)]
    shares = [_distance(*pair) / max(map(len, pair)) for pair in pairs]
    return 1 - sum(shares) / len(wanted), shares.count(0) / len(wanted)


def _distance(first: Sequence[int], second: Sequence[int]) -> int:
    """How many labels have to be changed, left out or put in to make one line of the other."""
    above = list(range(len(second) + 1))
    for index, label in enumerate(first, 1):
        row = [index]
        for place, other in enumerate(second, 1):
            row.append(min(above[place] + 1, row[-1] + 1, above[place - 1] + (label != other)))
        above = row
    return above[-1]
