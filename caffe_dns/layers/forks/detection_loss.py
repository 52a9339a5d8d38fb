"""DetectionLoss and DetectionAccuracy, on MS-CNN's maps of scores and boxes.

A map is N x (classes + 4) x H x W: the scores of each cell, the background's first, and its box
(see `fields`). Labels are N x 6 x H x W: the class, x and y of the centre of the object's box, its
width and height, and the overlap with it. A cell of class 0 whose overlap is `bg_threshold` or more
is neither background nor object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import LossLayer, Shape, layer_types
from caffe_dns.layers.checks import check_labels, check_positive
from caffe_dns.layers.detection.boxes import boxes_around, overlaps
from caffe_dns.layers.forks.fields import Field, NormalizedLayer, mean_of
from caffe_dns.layers.loss import MOST_SOFTMAX_LOSS, Clamp
from caffe_dns.proto.caffe_pb2 import DetectionAccuracyParameter, DetectionLossParameter

#: Which background counts: drawn, that with the highest scores, half of each, or all of it.
_SAMPLE_MODES = ("random", "bootstrap", "mixture", "all")
#: At least so many cells of background count for each class.
_LEAST_BACKGROUND = 4


@dataclass(frozen=True)
class Cells:
    """A map and its labels, cell by cell; P cells in each of N images."""

    #: N x classes x P, and N x P x 4.
    scores: Tensor
    codes: Tensor
    #: N x P; `classes` with `objectness` is 1 for every object.
    labels: Tensor
    classes: Tensor
    #: N x P x 2.
    middles: Tensor
    sides: Tensor
    #: N x P.
    overlap: Tensor
    columns: int

    @property
    def found(self) -> Tensor:
        """Where there is an object."""
        return self.labels != 0


class DetectionMap(NormalizedLayer):
    """What both layers have in common."""

    no_force_backward: ClassVar[tuple[int, ...]] = (1,)
    options: DetectionLossParameter | DetectionAccuracyParameter
    #: The name of `options` in the definition.
    field_name: str

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        self.options = getattr(self.param, self.field_name)
        settings = self.options
        of_fields = ("field_w", "field_h", "downsample_rate", "field_whr", "field_xyr")
        check_positive(self, self.field_name, ("cls_num", *of_fields))
        if settings.coord_num != 4:
            raise self.error("4 would be right", f"{self.field_name}.coord_num")
        if settings.objectness and settings.cls_num != 2:
            raise self.error("2 would be right with objectness", f"{self.field_name}.cls_num")
        loss = self.param.loss_param
        self.ignore_label = loss.ignore_label if loss.HasField("ignore_label") else None
        self.field = Field(settings.field_w, settings.field_h, settings.downsample_rate)
        self.shift, self.growth = 1 / settings.field_xyr, math.log(settings.field_whr)

    def check_bottoms(self, bottom_shapes: Sequence[Shape]) -> None:
        """Raise CaffeError unless the bottoms are a map and its labels."""
        first, second = bottom_shapes
        channels = self.options.cls_num + 4
        if len(first) != 4 or first[1] != channels or tuple(second) != (first[0], 6, *first[2:]):
            raise self.error(
                f"N x {channels} x H x W and N x 6 x H x W would be right, not {tuple(first)} and "
                f"{tuple(second)}",
                "bottom",
            )

    def cells(self, values: Tensor, labels: Tensor) -> Cells:
        """The bottoms, cell by cell."""
        classes, labels = self.options.cls_num, labels.detach().flatten(2)
        whole = labels[:, 0].long()
        shown = whole.clamp(max=1) if self.options.objectness else whole
        check_labels(self, shown, classes, self.ignore_label)
        return Cells(
            scores=values[:, :classes].flatten(2),
            codes=values[:, classes:].flatten(2).transpose(1, 2),
            labels=whole,
            classes=shown,
            middles=labels[:, 1:3].transpose(1, 2),
            sides=labels[:, 3:5].transpose(1, 2),
            overlap=labels[:, 5],
            columns=values.shape[3],
        )

    def ignored(self, labels: Tensor) -> Tensor:
        """Which are the label to ignore."""
        if self.ignore_label is None:
            return torch.zeros_like(labels, dtype=torch.bool)
        return labels == self.ignore_label


@layer_types.register("DetectionLoss")
class DetectionLoss(DetectionMap, LossLayer):
    """The softmax loss of cells' classes, and `lambda` times that of objects' boxes.

    The top is 1 x 1 x 1 x 2: the sum, and the second part alone, which has no gradient
    (`detection_loss_layer.cpp`). Of the background, `bg_multiple` cells for each of an object
    count, by `sample_mode`. What a box's differences are beyond `field_xyr` and `field_whr` does
    not count, but has a gradient.
    """

    field_name = "detection_loss_param"
    options: DetectionLossParameter

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        if self.options.sample_mode not in _SAMPLE_MODES:
            raise self.error(
                f"is '{self.options.sample_mode}'; known: {', '.join(_SAMPLE_MODES)}",
                f"{self.field_name}.sample_mode",
            )

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        return [(1, 1, 1, 2)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        cells = self.cells(*bottoms)
        boxes = getattr(self.options, "lambda") * self._box_loss(cells)
        total = self._class_loss(cells) + boxes
        return torch.stack([total, boxes.detach()]).view(1, 1, 1, 2)

    def _class_loss(self, cells: Cells) -> Tensor:
        kept = self._background(cells)
        counted = (cells.found | kept) & ~self.ignored(cells.classes)
        weights = self._weights(cells, kept).where(counted, 0)
        losses = F.cross_entropy(cells.scores, cells.classes * counted, reduction="none")
        losses = Clamp.apply(losses, None, MOST_SOFTMAX_LOSS)
        return (losses * weights).sum() / counted.sum().clamp(min=1)

    def _background(self, cells: Cells) -> Tensor:
        """Which cells without an object count, N x P."""
        candidates = ~cells.found & (cells.overlap < self.options.bg_threshold)
        mode = self.options.sample_mode
        if mode == "all":
            return candidates
        chosen = torch.zeros_like(candidates)
        for image in range(len(candidates)):
            if mode != "bootstrap":
                chosen[image, self._drawn(cells.found[image])] = True
            if mode != "random":
                # Of equal scores, the last one comes first.
                places = candidates[image].nonzero().flatten().flip(0)
                for label in range(1, self.options.cls_num):
                    most = self._multiple(cells.classes[image] == label)
                    scores = cells.scores[image, label, places].detach()
                    order = scores.argsort(descending=True, stable=True)
                    chosen[image, places[order[: max(most, _LEAST_BACKGROUND)]]] = True
        return chosen & candidates

    def _multiple(self, objects: Tensor) -> int:
        """How many cells of background there are to be for these of objects."""
        share = 0.5 if self.options.sample_mode == "mixture" else 1.0
        return int(int(objects.sum()) * self.options.bg_multiple * share)

    def _drawn(self, found: Tensor) -> Tensor:
        """Cells, drawn with replacement, some of which may be no background."""
        count = max(self._multiple(found), _LEAST_BACKGROUND * (self.options.cls_num - 1))
        return torch.randint(len(found), (count,), generator=self.generator(), device=found.device)

    def _weights(self, cells: Cells, kept: Tensor) -> Tensor:
        found, settings = cells.found, self.options
        weights = torch.ones_like(cells.overlap)
        if settings.iou_weighted:
            weights = torch.where(found, cells.overlap, weights)
        if settings.pos_neg_weighted:
            share = 1 / (1 + settings.bg_multiple)
            count = found.sum() + kept.sum()
            objects, background = (weights.where(some, 0).sum() for some in (found, kept))
            factors = torch.where(found, share * count / objects, (1 - share) * count / background)
            weights = torch.where(objects != 0, weights * factors, weights)
        return weights

    def _box_loss(self, cells: Cells) -> Tensor:
        counted = cells.found & ~self.ignored(cells.labels)
        wanted = self.normalized(self.field.encode(cells.middles, cells.sides, cells.columns))
        codes = torch.cat(
            [
                self._limited(cells.codes[..., :2], self.shift, 0),
                self._limited(cells.codes[..., 2:], self.growth, 2),
            ],
            -1,
        )
        if self.options.bb_smooth:
            losses = F.smooth_l1_loss(codes, wanted, reduction="none")
        else:
            losses = (codes - wanted).square() / 2
        return losses.where(counted.unsqueeze(-1), 0).sum() / (4 * counted.sum()).clamp(min=1)

    def _limited(self, codes: Tensor, limit: float, first: int) -> Tensor:
        """Within the limits, in units of the normalisation of two differences together."""
        mean = sum(self.mean[first : first + 2]) / 2
        deviation = math.sqrt(math.prod(self.deviation[first : first + 2]))
        low, high = ((bound - mean) / deviation for bound in (-limit, limit))
        limited: Tensor = Clamp.apply(codes, low, high)
        return limited


@layer_types.register("DetectionAccuracy")
class DetectionAccuracy(DetectionMap):
    """How often a cell's class is among the `top_k` best, and how well boxes overlap.

    Tops: 1 x 1 x 1 x 2 of all cells and of those with an object, and 1 x 1 x 1 x 1, the mean
    overlap of the boxes with objects; -1 where there is nothing to count
    (`detection_accuracy_layer.cpp`).
    """

    bottoms = (2, 2)
    tops = (1, 2)
    field_name = "detection_accuracy_param"
    options: DetectionAccuracyParameter

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        if not 1 <= self.options.top_k <= self.options.cls_num:
            raise self.error(
                f"1 to cls_num, {self.options.cls_num}, would be right", f"{self.field_name}.top_k"
            )

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        tops: list[Shape] = [(1, 1, 1, 2), (1, 1, 1, 1)]
        return tops[: self.num_tops]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        cells = self.cells(*bottoms)
        near = (cells.classes == 0) & (cells.overlap >= self.options.bg_threshold)
        counted = ~near & ~self.ignored(cells.classes)
        right = self._rank(cells) < self.options.top_k
        found = counted & (cells.classes != 0)
        codes = self.denormalized(cells.codes)
        middles, sides = self.field.decode(codes, cells.columns, self.shift, self.growth)
        shares = overlaps(boxes_around(middles, sides), boxes_around(cells.middles, cells.sides))
        of_boxes = mean_of(shares, cells.found & ~self.ignored(cells.labels))
        accuracy = torch.stack([mean_of(right.to(shares.dtype), some) for some in (counted, found)])
        return [accuracy.view(1, 1, 1, 2), of_boxes.view(1, 1, 1, 1)][: self.num_tops]

    def _rank(self, cells: Cells) -> Tensor:
        """How many classes come before that of the label, N x P; of equal ones, the last first."""
        label = cells.classes.clamp(0, self.options.cls_num - 1).unsqueeze(1)
        own = cells.scores.gather(1, label)
        classes = torch.arange(self.options.cls_num, device=label.device).view(1, -1, 1)
        before = (cells.scores > own) | ((cells.scores == own) & (classes > label))
        return before.sum(1)
