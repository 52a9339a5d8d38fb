"""Losses on whole maps of pixels: SigmoidCrossEntropyBalanceLoss (OSVOS) and DiceCoefLoss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, LossLayer, Shape, count, layer_types
from caffe_dns.layers.loss import check_targets


def _rows(bottom: Tensor) -> Tensor:
    """N x ... as N rows."""
    return bottom.reshape(len(bottom), -1)


@layer_types.register("SigmoidCrossEntropyBalanceLoss")
class SigmoidCrossEntropyBalanceLoss(LossLayer):
    """Cross entropy of the sigmoid, where ones and zeros of an image cost the same in sum.

    Bottoms: scores N x ... and as many targets. A target of 1 counts by the share of zeros among
    both, a 0 by that of ones, anything else not at all; the loss is divided by N
    (`sigmoid_cross_entropy_balance_loss_layer.cpp`; HED has it as SigmoidCrossEntropyLoss).
    """

    needs_numbers = ALL_BOTTOMS

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        check_targets(self, bottom_shapes)
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        scores = _rows(bottoms[0])
        targets = bottoms[1].detach().reshape(scores.shape)
        ones, zeros = (targets == 1).to(scores), (targets == 0).to(scores)
        positive, negative = ones.sum(1, keepdim=True), zeros.sum(1, keepdim=True)
        weights = (ones * negative + zeros * positive) / (positive + negative).clamp(min=1)
        total = F.binary_cross_entropy_with_logits(scores, ones, weights, reduction="sum")
        return total / len(scores)


@layer_types.register("DiceCoefLoss")
class DiceCoefLoss(LossLayer):
    """1 - (2 * a . b + 1) / (a . a + b . b + 1), averaged over the batch.

    Bottoms: two of N x ... with as many entries in each of N. As in `dice_coef_loss_layer.cpp`, the
    gradient is that of the sum over the batch.
    """

    needs_numbers = ALL_BOTTOMS
    no_force_backward: ClassVar[tuple[int, ...]] = ()

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first, second = (count(shape[1:]) for shape in bottom_shapes)
        if first != second:
            what = f"{first} numbers for each of the batch need as many beside them, not {second}"
            raise self.error(what, "bottom")
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        first, second = map(_rows, bottoms)
        common = 2 * (first * second).sum(1) + 1
        losses = 1 - common / (first.square().sum(1) + second.square().sum(1) + 1)
        total = losses.sum()
        return total + (losses.mean() - total).detach()
