"""Distances from the centres of classes, and the loss on them, of happynear's NormFace."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, LossLayer, Shape, count, layer_types
from caffe_dns.layers.checks import check_labels

_DISTANCE, _CONTRASTIVE = "inner_distance_param", "general_contrastive_loss_param"
#: What limits gradients in the fork's GeneralContrastiveLoss, and is not supported.
_LIMITS = ("max_negative_only", "max_positive_only", "positive_first", "add_intra_mae")


@layer_types.register("InnerDistance")
class InnerDistance(Layer):
    """The squared distance (L2), or the sum of differences (L1), of each item from each centre.

    Bottoms: items N x ..., of which everything from `axis` on counts; perhaps the centres, of which
    there is a blob [num_output, K] else; with `update_center_only` labels as the last, and centres
    learn from items of their own class alone. With `normalize`, centres in a blob are brought to
    length 1 where they are stored, with 1e-6 added to the square (`inner_distance_layer.cpp`).
    """

    needs_numbers = ALL_BOTTOMS

    bottoms = (1, 3)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = self.param.inner_distance_param
        if self.options.distance_type not in ("L1", "L2"):
            what = f"is '{self.options.distance_type}'; known: L1, L2"
            raise self.error(what, f"{_DISTANCE}.distance_type")
        if self.options.transpose:
            raise self.error("is not supported; false would do", f"{_DISTANCE}.transpose")
        self.labelled = self.options.update_center_only
        self.given = len(bottom_shapes) - self.labelled == 2
        if len(bottom_shapes) - self.labelled not in (1, 2):
            raise self.error(
                f"{len(bottom_shapes)} bottoms; items, perhaps centres, and labels with "
                "update_center_only alone would be right",
                "bottom",
            )
        shape = tuple(bottom_shapes[0])
        self.first_axis = self.axis(self.options.axis, len(shape), f"{_DISTANCE}.axis")
        self.num_inputs = count(shape[self.first_axis :])
        if self.given:
            return
        if self.options.num_output < 1:
            raise self.error("must be given and positive", f"{_DISTANCE}.num_output")
        centres = (self.options.num_output, self.num_inputs)
        self.add_parameter(centres, self.options.weight_filler, "weight")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        centres = tuple(bottom_shapes[1]) if self.given else tuple(self.blobs[0].shape)
        inputs = count(shape[self.first_axis :])
        if {inputs, count(centres[1:])} != {self.num_inputs}:
            raise self.error(
                f"items of {inputs} numbers and centres {centres}; {self.num_inputs} numbers would "
                "be right for both",
                "bottom",
            )
        items = count(shape[: self.first_axis])
        if self.labelled and count(tuple(bottom_shapes[-1])) != items:
            raise self.error(f"{items} labels would be right, not {bottom_shapes[-1]}", "bottom")
        return [(*shape[: self.first_axis], centres[0])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        centres = bottoms[1].flatten(1) if self.given else self.blobs[0]
        if self.options.normalize and not self.given:
            with torch.no_grad():
                centres.div_((centres.square().sum(1, keepdim=True) + 1e-6).sqrt())
        rows = bottoms[0].reshape(-1, self.num_inputs)
        if self.labelled:
            labels = bottoms[-1].flatten().long()
            check_labels(self, labels, len(centres))
            top = self._between(rows[:, None], centres.detach())[:, 0]
            own = self._between(rows.detach()[:, None], centres[labels][:, None])[:, :, 0]
            top = top.scatter_add(1, labels[:, None], own - own.detach())
        else:
            top = self._between(rows, centres)
        return top.reshape(*bottoms[0].shape[: self.first_axis], len(centres))

    def _between(self, items: Tensor, centres: Tensor) -> Tensor:
        """The distances of the last two axes' rows, without products that would cancel out."""
        if self.options.distance_type == "L1":
            return torch.cdist(items, centres, p=1)
        exact = "donot_use_mm_for_euclid_dist"
        return torch.cdist(items, centres, p=2, compute_mode=exact).square()


@layer_types.register("GeneralContrastiveLoss")
class GeneralContrastiveLoss(LossLayer):
    """What is far from its own class's centre, and what is near to another's, over the batch size.

    Bottoms: distances N x C and N labels. The own one costs what it has beyond positive_margin, up
    to positive_outlier_thresh, from where on it has no gradient; others cost what they lack of
    negative_margin, or with `exp_negative_weight` exp(-distance) where they lack something. Tops:
    the loss; the means of both without weights (`general_constrastive_loss_layer.cpp`).
    """

    needs_numbers = ALL_BOTTOMS

    tops = (1, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = self.param.general_contrastive_loss_param
        for name in _LIMITS:
            if getattr(self.options, name):
                raise self.error("is not supported; false would do", f"{_CONTRASTIVE}.{name}")
        if self.options.HasField("normalize_negative"):
            what = "is not supported; nothing there would do"
            raise self.error(what, f"{_CONTRASTIVE}.normalize_negative")
        for name in ("positive_weight", "negative_weight"):
            if getattr(self.options, name) < 0:
                raise self.error("must be at least 0", f"{_CONTRASTIVE}.{name}")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        super().reshape(bottom_shapes)
        distances, labels = map(tuple, bottom_shapes)
        if count(labels) != distances[0] or count(distances[1:]) < 2:
            raise self.error(
                f"distances {distances} and labels {labels}; N x classes and N would be right",
                "bottom",
            )
        tops: list[Shape] = [(), (2,)]
        return tops[: self.num_tops]

    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        options, labels = self.options, bottoms[1].flatten().long()
        distances = bottoms[0].reshape(len(labels), -1)
        num, classes = distances.shape
        check_labels(self, labels, classes)
        own = distances.gather(1, labels[:, None])[:, 0]
        beyond = (own.detach() - options.positive_margin).clamp(0, options.positive_outlier_thresh)
        learns = (own > options.positive_margin) & (own < options.positive_outlier_thresh)
        far = beyond + torch.where(learns, own - own.detach(), 0)
        others = torch.ones_like(distances, dtype=torch.bool).scatter(1, labels[:, None], False)
        lacking = (options.negative_margin - distances).clamp(min=0).where(others, 0)
        near = lacking
        if options.exp_negative_weight:
            near = (-distances).exp().where(others & (distances < options.negative_margin), 0)
        loss = options.positive_weight * far.sum() + options.negative_weight * near.sum()
        means = torch.stack([beyond.sum() / num, lacking.detach().sum() / num / (classes - 1)])
        return [loss / num, means][: self.num_tops]
