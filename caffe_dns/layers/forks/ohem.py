"""Online hard example mining: only the regions with the largest losses count (R-FCN)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types
from caffe_dns.layers.loss import SoftmaxWithLoss


@layer_types.register("SoftmaxWithLossOHEM")
class SoftmaxWithLossOHEM(SoftmaxWithLoss):
    """A SoftmaxWithLoss whose third top is the loss of each label, in the labels' shape.

    That top has no gradient.
    """

    tops = (1, 3)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(bottom_shapes)
        return [*tops[:2], tuple(bottom_shapes[1])][: self.num_tops]

    def forward(self, *bottoms: Tensor) -> Tensor | Sequence[Tensor]:
        tops = super().forward(*bottoms)
        if self.num_tops < 3:
            return tops
        rows, labels = self.rows(bottoms[0].detach(), bottoms[1])
        losses = self.losses(F.log_softmax(rows, 1), self.class_labels(labels, rows.shape[1]))
        return *tops, losses.reshape(bottoms[1].shape)


@layer_types.register("BoxAnnotatorOHEM")
class BoxAnnotatorOHEM(Layer):
    """Labels and weights of the `roi_per_img` regions with the largest loss of each image.

    Bottoms: regions R x 5 x H x W, losses and labels R x 1 x H x W, weights of boxes R x C x H x W;
    axes of extent 1 at the end may be missing. Tops: the labels, `ignore_label` for the regions
    left out, and the weights, 0 for those. Of equal losses, the first count. There is no gradient.
    """

    bottoms = (4, 4)
    tops = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.box_annotator_ohem_param
        self.most, self.ignore_label = settings.roi_per_img, settings.ignore_label
        if self.most < 1:
            raise self.error("must be given and positive", "box_annotator_ohem_param.roi_per_img")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shapes = [(*shape, *(1,) * (4 - len(shape))) for shape in bottom_shapes]
        num, *_, height, width = shapes[0]
        channels = shapes[3][1]
        wanted = [(num, extent, height, width) for extent in (5, 1, 1, channels)]
        what = ("regions", "losses", "labels", "weights")
        for name, shape, right in zip(what, shapes, wanted, strict=True):
            if shape != right:
                raise self.error(
                    f"the {name} are {' x '.join(map(str, shape))}; "
                    f"{' x '.join(map(str, right))} would be right",
                    "bottom",
                )
        return [wanted[2], wanted[3]]

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        shapes = self.reshape([tuple(bottom.shape) for bottom in bottoms])
        regions, losses = (bottom.detach() for bottom in bottoms[:2])
        images = regions.reshape(len(regions), 5, -1)[:, 0].long().flatten()
        kept = largest_of_each(losses.flatten(), images, self.most)
        labels, weights = (
            bottom.detach().reshape(shape)
            for bottom, shape in zip(bottoms[2:], shapes, strict=True)
        )
        kept = kept.reshape(shapes[0])
        return [labels.masked_fill(~kept, self.ignore_label), weights.masked_fill(~kept, 0)]


def largest_of_each(values: Tensor, groups: Tensor, most: int) -> Tensor:
    """Which values are among the `most` largest of their group, the first of equal ones."""
    order = values.argsort(descending=True, stable=True)
    sorted_groups, by_group = groups[order].sort(stable=True)
    order = order[by_group]
    # How many of its group stand before each.
    rank = torch.arange(len(order), device=order.device)
    rank = rank - torch.searchsorted(sorted_groups, sorted_groups)
    return torch.zeros_like(groups, dtype=torch.bool).index_put((order,), rank < most)
