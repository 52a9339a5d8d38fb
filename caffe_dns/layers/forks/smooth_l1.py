"""Losses on boxes: the smooth L1 norm of a difference, elementwise.

f(x) = sigma^2 * x^2 / 2 where |x| < 1 / sigma^2, else |x| - 1 / (2 * sigma^2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import LossLayer, Shape, layer_types
from caffe_dns.layers.loss import NormalizedLoss
from caffe_dns.proto.caffe_pb2 import LossParameter


class BoxLoss(LossLayer):
    """What both share. Bottoms: predictions, targets, and weights in the same shape."""

    # Both sides of the difference may learn; weights never do.
    no_force_backward = (2, 3)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(bottom_shapes)
        first = _four_axes(bottom_shapes[0])
        for index, shape in enumerate(bottom_shapes):
            if _four_axes(shape) != first:
                raise self.error(
                    f"all bottoms need the shape {' x '.join(map(str, bottom_shapes[0]))} of the "
                    f"first; number {index + 1} has {' x '.join(map(str, shape))}",
                    "bottom",
                )
        return tops

    def losses(self, bottoms: Sequence[Tensor], sigma: float = 1.0) -> Tensor:
        """f of each difference, weighted by the third bottom, if any; in the first's shape."""
        prediction, target, *weights = bottoms
        difference = prediction - target.reshape(prediction.shape)
        if weights:
            difference = difference * weights[0].detach().reshape(prediction.shape)
        nothing = torch.zeros_like(difference)
        return F.smooth_l1_loss(difference, nothing, reduction="none", beta=sigma**-2)


def _four_axes(shape: Shape) -> Shape:
    """The shape with extents of 1 at its end, where these forks' blobs have none."""
    return (*shape, 1, 1, 1)[: max(4, len(shape))]


@layer_types.register("SmoothL1Loss")
class SmoothL1Loss(BoxLoss):
    """The sum of outer * f(inner * (a - b)) over the batch size (Fast and Faster R-CNN).

    Bottoms: a and b, then the inner weights and the outer ones; these may be left out, or both.
    """

    bottoms = (2, 4)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.sigma = self.param.smooth_l1_loss_param.sigma
        if self.sigma <= 0:
            raise self.error("must be positive", "smooth_l1_loss_param.sigma")
        settings = self.param.loss_param
        # Intel Caffe's; Faster R-CNN takes no notice of a normalisation.
        self.averaged = settings.normalization != LossParameter.NONE
        if settings.normalization in (LossParameter.FULL, LossParameter.PRE_FIXED):
            raise self.error(
                "SmoothL1Loss divides by the batch size, or by nothing (NONE)",
                "loss_param.normalization",
            )

    def forward(self, *bottoms: Tensor) -> Tensor:
        losses = self.losses(bottoms[:3], self.sigma)
        if len(bottoms) > 3:
            losses = losses * bottoms[3].detach().reshape(losses.shape)
        return losses.sum() / (bottoms[0].shape[0] if self.averaged else 1)


@layer_types.register("SmoothL1LossOHEM")
class SmoothL1LossOHEM(BoxLoss, NormalizedLoss):
    """The sum of f(weight * (a - b)), divided by what `loss_param` says (R-FCN).

    Bottoms: a, b and perhaps weights, N x C x H x W. A second top has the loss of each place,
    summed over the channels: N x 1 x H x W. It has no gradient. As there are no labels, none is
    ignored.
    """

    bottoms = (2, 3)
    tops = (1, 2)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        num, _, *places = _four_axes(bottom_shapes[0])
        return [*super().reshape(bottom_shapes), (num, 1, *places)][: self.num_tops]

    def forward(self, *bottoms: Tensor) -> Tensor | Sequence[Tensor]:
        losses = self.losses(bottoms)
        losses = losses.reshape(_four_axes(tuple(losses.shape)))
        by_place = losses.detach().sum(1, keepdim=True)
        loss = losses.sum() / self.divisor(by_place, bottoms[0].shape[0])
        return loss if self.num_tops == 1 else (loss, by_place)
