"""YOLO 2: RegionLoss, the loss, and EvalDetection, which counts detections.

Both compare a map N x (A * (5 + classes)) x S x S, with A boxes in a cell (x, y, width, height,
objectness, classes), with objects. Intel Caffe's are in SSD's order: rows of 8, image and class
first, then, after an unused value, the corners in fractions of the image. MobileNet-YOLO's
RegionLoss takes rows of 5 for each image: class, centre and sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffe_dns.layers.base import FIRST_BOTTOM, Layer, LossLayer, Shape, layer_types
from caffe_dns.layers.checks import check_indices, check_positive
from caffe_dns.layers.detection.boxes import (
    boxes_around,
    centres_of,
    overlaps,
    sides_of,
    uncovered,
)
from caffe_dns.layers.forks.yolo import cells_of, corners_of
from caffe_dns.proto.caffe_pb2 import EvalDetectionParameter, RegionLossParameter

#: Values of a box before its classes, and numbers of an object, for Intel and MobileNet-YOLO.
_BOX, _OBJECT, _CENTRED = 5, 8, 5
#: Boxes with a lower score count for nothing.
_LEAST_SCORE = 0.005


@dataclass(frozen=True)
class Objects:
    """M objects: image, class from 0 on, and corners [M, 4]."""

    images: Tensor
    classes: Tensor
    boxes: Tensor

    def of(self, image: int) -> Objects:
        """Those of one image."""
        own = self.images == image
        return Objects(self.images[own], self.classes[own], self.boxes[own])


class RegionLayer(Layer):
    """What both have in common."""

    #: The layer's settings, and the names of some of them.
    field: ClassVar[str]
    boxes_field: ClassVar[str]
    no_force_backward: ClassVar[tuple[int, ...]] = (1,)
    needs_numbers = FIRST_BOTTOM
    options: RegionLossParameter | EvalDetectionParameter

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = getattr(self.param, self.field)
        check_positive(self, self.field, ("side", "num_class", self.boxes_field))
        self.side, self.classes = self.options.side, self.options.num_class
        self.rows = _OBJECT
        self.boxes: int = getattr(self.options, self.boxes_field)
        if len(self.options.biases) < 2 * self.boxes:
            raise self.error(
                f"has {len(self.options.biases)} values; a width and a height for each of "
                f"{self.boxes} boxes would be right",
                f"{self.field}.biases",
            )

    def check_bottoms(self, bottom_shapes: Sequence[Shape]) -> None:
        """Raise CaffeError unless the first two bottoms are a map and objects."""
        channels = self.boxes * (_BOX + self.classes)
        wanted = (channels, self.side, self.side)
        shape, objects = bottom_shapes[:2]
        if tuple(shape[1:]) != wanted:
            raise self.error(
                f"bottom 0 is {tuple(shape)}; N x {' x '.join(map(str, wanted))} would be right",
                "bottom",
            )
        if not objects or objects[-1] != self.rows:
            raise self.error(
                f"bottom 1 is {tuple(objects)}; rows of {self.rows} numbers, as AnnotatedData "
                "gives them, would be right",
                "bottom",
            )

    def anchors(self, like: Tensor) -> Tensor:
        """Widths and heights [A, 2] in shares of the image."""
        values = like.new_tensor(list(self.options.biases[: 2 * self.boxes]))
        return values.view(-1, 2) / self.side

    def objects(self, bottom: Tensor, images: int) -> Objects:
        """The objects of a bottom; a row of image -1 is none."""
        rows = bottom.detach().reshape(-1, _OBJECT)
        rows = rows[rows[:, 0].long() != -1]
        found = Objects(rows[:, 0].long(), rows[:, 1].long() - 1, rows[:, 3:7])
        check_indices(self, found.images, images, "image")
        check_indices(self, found.classes, self.classes, "class less one")
        return found


class _WithGradient(torch.autograd.Function):
    """A value that stands for any function of the bottom with that gradient."""

    @staticmethod
    def forward(ctx: Any, bottom: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (own,) = ctx.saved_tensors
        return own * gradient, None, None


def with_gradient(bottom: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """`value`, a number, with a gradient for the bottom that is given and not derived."""
    result: Tensor = _WithGradient.apply(bottom, value, gradient)
    return result


@layer_types.register("RegionLoss")
class RegionLoss(RegionLayer, LossLayer):
    """The loss of YOLO 2's boxes (`region_loss_layer.cpp` of Intel Caffe and of MobileNet-YOLO).

    The box in an object's cell whose anchor is most like it gets its place, sides and class, the
    others no object, unless they overlap one by more than `thresh`. The loss is the sum of the
    squares of what the fork sends back, which is not the gradient of that sum; for MobileNet-YOLO's
    rows over the batch size. With those, a map of any side will do, places and sides are not
    limited, and `rescore` says whether a box is to be as sure as it overlaps its object, or sure.
    """

    field = "region_loss_param"
    boxes_field = "num"
    options: RegionLossParameter

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        if self.options.coords != _BOX - 1:
            raise self.error("4 would be right", f"{self.field}.coords")
        for name in ("softmax_tree", "class_map"):
            if getattr(self.options, name):
                raise self.error("is not supported", f"{self.field}.{name}")

    @property
    def centred(self) -> bool:
        """Whether objects come as MobileNet-YOLO has them."""
        return self.rows == _CENTRED

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, objects = bottom_shapes
        if len(objects) == 4 and objects[-1] == _CENTRED and objects[:1] == shape[:1]:
            self.rows, self.side = _CENTRED, shape[-1]
        self.check_bottoms(bottom_shapes)
        return [()]

    def objects(self, bottom: Tensor, images: int) -> Objects:
        if not self.centred:
            return super().objects(bottom, images)
        rows = bottom.detach().reshape(images, -1, _CENTRED)
        image, number = listed(rows)
        label, box = rows[image, number].split((1, _CENTRED - 1), 1)
        check_indices(self, label.long(), self.classes, "class")
        return Objects(image, label[:, 0].long(), boxes_around(box[:, :2], box[:, 2:]))

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom = bottoms[0]
        with torch.no_grad():
            cells = cells_of(bottom.detach(), self.boxes)
            objects = self.objects(bottoms[1], len(bottom))
            differences = self._differences(cells, objects)
            loss = differences.square().sum() / (len(bottom) if self.centred else 1)
        # In the order of the bottom.
        by_channel = differences.permute(0, 3, 4, 1, 2).reshape(bottom.shape)
        return with_gradient(bottom, loss, by_channel / len(bottom))

    def _differences(self, cells: Tensor, objects: Objects) -> Tensor:
        boxes = corners_of(cells[..., :2], cells[..., 2:4], self.anchors(cells))
        found = torch.zeros_like(cells)
        likely = cells[..., 4].sigmoid()
        shares = overlaps(boxes.unsqueeze(-2), objects.boxes)
        images = torch.arange(len(cells), device=cells.device).view(-1, 1, 1, 1, 1)
        shares = shares.where(objects.images == images, 0)
        near = (shares > self.options.thresh).any(-1)
        found[..., 4] = self.options.noobject_scale * likely.square() * (1 - likely)
        found[..., 4].masked_fill_(near, 0)
        if len(objects.boxes):
            places = self._places(cells, boxes, objects)
            # Of objects for one box, the last counts.
            keys = torch.stack(places, 1).tolist()
            last = {tuple(key): at for at, key in enumerate(keys)}
            chosen = torch.tensor(sorted(last.values()), device=cells.device)
            places = tuple(place[chosen] for place in places)
            shares = overlaps(boxes[places], objects.boxes[chosen])
            found[places] = self._of_objects(cells[places], places, objects, chosen, shares)
        return found

    def _places(self, cells: Tensor, boxes: Tensor, objects: Objects) -> tuple[Tensor, ...]:
        """Image, row, column and box that each object belongs to."""
        sides = sides_of(objects.boxes)
        columns, rows = (centres_of(objects.boxes) * self.side).long().unbind(1)
        for places in (columns, rows):
            check_indices(self, places, self.side, "the cell of an object")
        if self.options.bias_match:
            like = self.anchors(cells).expand(len(sides), -1, -1)
        else:
            like = sides_of(boxes[objects.images, rows, columns])
        shares = overlaps(around(like), around(sides).unsqueeze(1))
        return objects.images, rows, columns, shares.argmax(1)

    def _of_objects(
        self,
        values: Tensor,
        places: tuple[Tensor, ...],
        objects: Objects,
        chosen: Tensor,
        overlapping: Tensor,
    ) -> Tensor:
        """The differences [n, 5 + classes] of boxes with these values from their objects.

        `overlapping` [n] is how much each overlaps its own.
        """
        options = self.options
        boxes = objects.boxes[chosen]
        cell = torch.stack([places[2], places[1]], 1)
        at, likely = values[:, :2].sigmoid(), values[:, 4:5].sigmoid()
        moved = centres_of(boxes) * self.side - cell - at
        grown = (sides_of(boxes) / self.anchors(values)[places[3]]).log() - values[:, 2:4]
        scale: float | Tensor = options.coord_scale
        if self.centred:
            wanted_sure = overlapping.unsqueeze(1) if options.rescore else 1
            sure = -options.object_scale * (wanted_sure - likely) * likely * (1 - likely)
            if not options.rescore:
                scale = scale * (2 - sides_of(boxes).prod(1, keepdim=True))
        else:
            moved, grown = moved.clamp(-1, 1), grown.clamp(-1, 1)
            sure = -2 * options.object_scale * (1 - likely) ** 4 * likely
        box = -scale * torch.cat([moved * at * (1 - at), grown], 1)
        shares = values[:, _BOX:].softmax(1)
        wanted = torch.zeros_like(shares)
        wanted[torch.arange(len(chosen), device=wanted.device), objects.classes[chosen]] = 1
        return torch.cat([box, sure, options.class_scale * (shares - wanted)], 1)


def around(sides: Tensor) -> Tensor:
    """Boxes with these sides around one point."""
    return boxes_around(torch.zeros_like(sides), sides)


def listed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Image and number of each object in MobileNet-YOLO's rows [N, M, 5].

    The list of an image ends with the first that has no width.
    """
    image, number = (rows[..., 3] != 0).cumprod(1).nonzero().unbind(1)
    return image, number


@layer_types.register("EvalDetection")
class EvalDetection(RegionLayer):
    """How many objects of each class there are, and which boxes find them.

    Top N x (classes + S * S * A * 4): counts of classes, then class, score, whether it is right and
    whether it is wrong for each box that no better one of any class covers, class by class, the
    best first; the rest is 0. A box is right if it overlaps an object of its class by `threshold`
    or more that none has found before, wrong if that is found or no object is of the class, and
    neither otherwise (`eval_detection_layer.cpp`). A third bottom is of no account.
    """

    field = "eval_detection_param"
    boxes_field = "num_object"
    bottoms = (2, 3)
    options: EvalDetectionParameter

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        most = self.side * self.side * self.boxes
        return [(bottom_shapes[0][0], self.classes + 4 * most)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom = bottoms[0]
        objects = self.objects(bottoms[1], len(bottom))
        (shape,) = self.reshape([tuple(each.shape) for each in bottoms])
        top = bottom.new_zeros(shape)
        for image in range(len(bottom)):
            own = objects.of(image)
            top[image, : self.classes] = torch.bincount(own.classes, minlength=self.classes).to(
                top.dtype
            )
            rows = self._found(bottom[image : image + 1], own)
            top[image, self.classes : self.classes + rows.numel()] = rows.flatten()
        return top

    def _found(self, bottom: Tensor, objects: Objects) -> Tensor:
        """Class, score, right and wrong of each box that stays [n, 4]."""
        if self.options.nms < 0:
            return bottom.new_zeros(0, 4)
        cells = cells_of(bottom, self.boxes).contiguous()
        boxes = corners_of(cells[..., :2], cells[..., 2:4], self.anchors(cells)).view(-1, 4)
        values = cells.view(-1, _BOX + self.classes)
        scores, labels = values[:, _BOX:].softmax(1).max(1)
        likely = values[:, 4].sigmoid()
        if self.options.score_type == EvalDetectionParameter.OBJ:
            scores = likely
        elif self.options.score_type == EvalDetectionParameter.MULTIPLY:
            scores = scores * likely
        order = scores.argsort(descending=True, stable=True)
        order = order[uncovered(boxes[order], self._leaves)]
        order = order[scores[order] >= _LEAST_SCORE]
        order = order[labels[order].argsort(stable=True)]
        verdicts = self._verdicts(boxes[order], labels[order].tolist(), objects)
        columns = [labels[order].to(scores.dtype), scores[order]]
        return torch.cat([torch.stack(columns, 1), boxes.new_tensor(verdicts).view(-1, 2)], 1)

    def _leaves(self, box: Tensor, others: Tensor) -> Tensor:
        return overlaps(box, others) < self.options.nms

    def _verdicts(
        self, boxes: Tensor, labels: Sequence[int], objects: Objects
    ) -> list[tuple[int, int]]:
        """Whether each box is right and whether it is wrong."""
        shares = overlaps(boxes[:, None], objects.boxes)
        found: set[int] = set()
        verdicts = []
        for label, row in zip(labels, shares, strict=True):
            own = (objects.classes == label).nonzero().flatten()
            if not len(own):
                verdicts.append((0, 1))
                continue
            best = int(own[row[own].argmax()])
            if row[best] < self.options.threshold:
                verdicts.append((0, 0))
                continue
            verdicts.append((0, 1) if best in found else (1, 0))
            found.add(best)
        return verdicts
