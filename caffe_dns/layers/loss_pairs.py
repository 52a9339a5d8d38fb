"""Losses on pairs of predictions, with gradients for both. Losses on labels are in `loss`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import LossLayer, Shape, count, layer_types, shape_text


@layer_types.register("EuclideanLoss")
class EuclideanLoss(LossLayer):
    """Half the sum of squared differences, averaged over the batch (`euclidean_loss_layer.cpp`).

    Both bottoms hold N x ... with as many elements.
    """

    no_force_backward: ClassVar[tuple[int, ...]] = ()

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(bottom_shapes)
        _check_same_count(self, bottom_shapes[0], bottom_shapes[1])
        return tops

    def forward(self, *bottoms: Tensor) -> Tensor:
        first, second = bottoms
        difference = first - second.reshape(first.shape)
        return difference.square().sum() / (2 * first.shape[0])


class _Distance(torch.autograd.Function):
    """The square root, with 1 / (2 * (root + 1e-4)) for its gradient.

    Hand-written because that is how Caffe keeps clear of a division by zero
    (`ContrastiveLossLayer::Backward_cpu`).
    """

    @staticmethod
    def forward(ctx: Any, squares: Tensor) -> Tensor:
        distance = squares.sqrt()
        ctx.save_for_backward(distance)
        return distance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        return gradient / (2 * (distance + 1e-4))


@layer_types.register("ContrastiveLoss")
class ContrastiveLoss(LossLayer):
    """Draws similar pairs together and pushes others `margin` apart (`contrastive_loss_layer.cpp`).

    Bottoms: two N x C blobs and N labels, not 0 for a similar pair, or (happynear's fork) N labels
    of each, the same for a similar pair. With the distance d, a similar pair costs d^2 and another
    one max(margin - d, 0)^2, or max(margin - d^2, 0) with `legacy_version`; the loss is half the
    mean over the batch.
    """

    bottoms = (3, 4)
    no_force_backward: ClassVar[tuple[int, ...]] = (2, 3)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(bottom_shapes)
        first, second, *labels = bottom_shapes
        for shape in (first, second):
            if count(shape[2:]) != 1:
                raise self.error(f"a bottom of shape {shape_text(shape)} is not N x C", "bottom")
        _check_same_count(self, first, second)
        for shape in labels:
            if count(shape) != first[0]:
                message = f"{first[0]} pairs need as many labels, not {count(shape)}"
                raise self.error(message, "bottom")
        return tops

    def forward(self, *bottoms: Tensor) -> Tensor:
        settings = self.param.contrastive_loss_param
        first, second = (bottom.flatten(1) for bottom in bottoms[:2])
        squares = (first - second).square().sum(1)
        if settings.legacy_version:
            apart = F.relu(settings.margin - squares)
        else:
            apart = F.relu(settings.margin - _Distance.apply(squares)).square()
        label, *others = (bottom.reshape(-1).long() for bottom in bottoms[2:])
        similar = label == others[0] if others else label != 0
        return torch.where(similar, squares, apart).sum() / (2 * first.shape[0])


def _check_same_count(layer: LossLayer, first: Shape, second: Shape) -> None:
    if count(first[1:]) != count(second[1:]):
        raise layer.error(
            f"the bottoms differ in size: {shape_text(first)} and {shape_text(second)}", "bottom"
        )
