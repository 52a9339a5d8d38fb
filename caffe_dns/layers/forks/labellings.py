"""Lines of labels, shorter than the steps that they are read in: CtcLoss, LabelsequenceAccuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import Layer, LossLayer, Shape, layer_types
from caffe_dns.layers.checks import check_labels


@layer_types.register("CtcLoss")
class CtcLoss(LossLayer):
    """Connectionist temporal classification, averaged over the batch (`ctc_loss_layer.cpp`).

    Bottoms: scores T x N x C, of which `time_step` steps count, and labels N x L, in which blanks
    are left out. The gradient, as there, is that of the sum over the batch. A line that has no room
    in the steps costs nothing.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = self.param.ctc_loss_param
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
        lengths = shown.sum(1)
        steps = torch.full_like(lengths, self.options.time_step)
        scores = F.log_softmax(bottoms[0][: self.options.time_step], 2)
        total = F.ctc_loss(
            scores,
            labels[shown],
            steps,
            lengths,
            blank=self.options.blank_label,
            reduction="sum",
            zero_infinity=True,
        )
        return total + (total / len(labels) - total).detach()


@layer_types.register("LabelsequenceAccuracy")
class LabelsequenceAccuracy(Layer):
    """The share of lines that are read without a mistake (`labelsequence_accuracy_layer.cpp`).

    Bottoms: scores N x T x C, whose best labels count once each time that they begin, and labels
    N x L; blanks are left out of both.
    """

    needs_numbers = True

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
        begins = F.pad(best[:, 1:] != best[:, :-1], (1, 0), value=True) & (best != blank)
        lines = bottoms[1].flatten(1).long()
        right = [
            torch.equal(read[new], line[line != blank])
            for read, new, line in zip(best, begins, lines, strict=True)
        ]
        return bottoms[0].new_tensor(right).mean()
