"""The detections of YOLO's nets: YoloDetectionOutput and Yolov3DetectionOutput (MobileNet-YOLO)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, layer_types
from caffe_dns.layers.checks import check_positive
from caffe_dns.layers.detection.boxes import boxes_around, overlaps, uncovered
from caffe_dns.layers.detection.detection_output import ROW

#: Values of a box before its classes: x, y, width, height, and whether there is an object.
_BOX = 5
#: Those of a box with variances, of which each of the first four has one behind it.
_GAUSSIAN_BOX = 9


class YoloOutput(Layer):
    """Boxes that are left of those in the cells of grids, and one list for all images and classes.

    Bottoms N x (A * (box + classes)) x H x W, with A boxes a cell. Top 1 x 1 x boxes x 7: 0,
    label from 1 on, score, xmin, ymin, xmax, ymax in shares of the image, the best first. Without
    any box, each image has a row with its number and -1 throughout. No gradient passes through.
    """

    #: The layer's settings.
    field: ClassVar[str]
    bottoms: ClassVar[tuple[int, int | None]] = (1, None)
    needs_numbers = ALL_BOTTOMS

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = getattr(self.param, self.field)
        if not self.options.HasField("num_classes"):
            raise self.error("must be given", f"{self.field}.num_classes")
        check_positive(self, self.field, ("num_classes", "num_box"))
        self.classes, self.boxes = self.options.num_classes, self.options.num_box
        pairs = self.options.biases
        if len(pairs) % 2:
            raise self.error(f"has {len(pairs)} values, not pairs", f"{self.field}.biases")
        #: Widths and heights of the anchors.
        self.anchors = [(pairs[i], pairs[i + 1]) for i in range(0, len(pairs), 2)]

    def values(self) -> int:
        """Values of a box before its classes."""
        return _BOX

    def anchors_of(self, bottom: int) -> list[tuple[float, float]]:
        """The anchors of the boxes in a cell of a bottom. Raises CaffeError when some lack."""
        raise NotImplementedError

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        wanted = self.boxes * (self.values() + self.classes)
        for index, shape in enumerate(bottom_shapes):
            if len(shape) != 4 or shape[1] != wanted:
                raise self.error(
                    f"bottom {index} is {tuple(shape)}; N x {wanted} x H x W would be right for "
                    f"{self.boxes} boxes of {self.classes} classes",
                    "bottom",
                )
            self.anchors_of(index)
        return [(1, 1, 1, ROW)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        found = [self.see(bottom, index) for index, bottom in enumerate(bottoms)]
        rows = torch.cat(found)
        rows = rows[rows[:, 2].argsort(descending=True, stable=True)]
        if len(rows):
            rows = rows[uncovered(rows[:, 3:], self._leaves)]
        else:
            log.info("Couldn't find any detections")
            rows = rows.new_full((len(bottoms[0]), ROW), -1)
            rows[:, 0] = torch.arange(len(rows), device=rows.device)
        return rows.reshape(1, 1, -1, ROW)

    def _leaves(self, box: Tensor, others: Tensor) -> Tensor:
        return overlaps(box, others) < self.options.nms_threshold

    def see(self, bottom: Tensor, index: int) -> Tensor:
        """The rows of the boxes in one bottom whose scores suffice, in the order of the cells."""
        raise NotImplementedError


def cells_of(bottom: Tensor, boxes: int) -> Tensor:
    """A bottom as N x H x W x boxes x values."""
    num, _, height, width = bottom.shape
    return bottom.view(num, boxes, -1, height, width).permute(0, 3, 4, 1, 2)


def corners_of(centres: Tensor, sides: Tensor, anchors: Tensor) -> Tensor:
    """The boxes as xmin, ymin, xmax, ymax, of centres and logarithms of sides.

    `centres` and `sides` are N x H x W x A x 2, `anchors` A x 2 in shares of the image.
    """
    _, height, width, _, _ = centres.shape
    extents = centres.new_tensor([width, height])
    rows = torch.arange(height, device=centres.device).view(-1, 1, 1, 1)
    columns = torch.arange(width, device=centres.device).view(1, -1, 1, 1)
    places = torch.cat(torch.broadcast_tensors(columns, rows), -1).to(centres.dtype)
    middle = (places + centres.sigmoid()) / extents
    return boxes_around(middle, sides.exp() * anchors)


@layer_types.register("YoloDetectionOutput")
class YoloDetectionOutput(YoloOutput):
    """The best class of each box of YOLO 2 (`yolo_detection_output_layer.cpp`).

    The score is the sigmoid of the object's times the softmax of the class's. Anchors are in cells.
    Of two bottoms, both have the same anchors.
    """

    field = "yolo_detection_output_param"
    bottoms = (1, 2)

    def anchors_of(self, bottom: int) -> list[tuple[float, float]]:
        if len(self.anchors) < self.boxes:
            raise self.error(
                f"has {len(self.anchors)} pairs for {self.boxes} boxes", f"{self.field}.biases"
            )
        return self.anchors[: self.boxes]

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        tops = super().reshape(bottom_shapes)
        for shape in bottom_shapes:
            if shape[2] != shape[3]:
                raise self.error(f"the grid is {shape[2]} x {shape[3]}; it has to be square")
        return tops

    def see(self, bottom: Tensor, index: int) -> Tensor:
        cells = cells_of(bottom, self.boxes)
        anchors = cells.new_tensor(self.anchors_of(index)) / bottom.shape[3]
        boxes = corners_of(cells[..., :2], cells[..., 2:4], anchors)
        scores, labels = cells[..., _BOX:].softmax(-1).max(-1)
        scores = scores * cells[..., 4].sigmoid()
        enough = scores >= self.options.confidence_threshold
        columns = [torch.zeros_like(scores), labels + 1.0, scores]
        return torch.cat([torch.stack(columns, -1), boxes], -1)[enough]


@layer_types.register("Yolov3DetectionOutput")
class Yolov3DetectionOutput(YoloOutput):
    """All classes of each box of YOLO 3 that are likely (`yolov3_detection_output_layer.cpp`).

    A score is the sigmoid of the object's times that of the class's. Anchors are in pixels of the
    image, which has `anchors_scale` pixels a cell; of bottom i, boxes have the anchors `mask`
    names. With `gaussian_box`, each of x, y, width and height has an uncertainty behind it, which
    lowers the score.
    """

    field = "yolov3_detection_output_param"

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        options = self.options
        if len(bottom_shapes) != options.mask_group_num:
            raise self.error(
                f"is {options.mask_group_num} for {len(bottom_shapes)} bottoms",
                f"{self.field}.mask_group_num",
            )
        if len(options.anchors_scale) < len(bottom_shapes):
            raise self.error("needs a value for each bottom", f"{self.field}.anchors_scale")

    def values(self) -> int:
        return _GAUSSIAN_BOX if self.options.gaussian_box else _BOX

    def anchors_of(self, bottom: int) -> list[tuple[float, float]]:
        mask = self.options.mask
        first = bottom * (len(mask) // self.options.mask_group_num)
        chosen = mask[first : first + self.boxes]
        if len(chosen) < self.boxes or max(chosen, default=0) >= len(self.anchors):
            raise self.error(
                f"{list(mask)} does not give {self.boxes} of {len(self.anchors)} anchors for "
                f"bottom {bottom}",
                f"{self.field}.mask",
            )
        return [self.anchors[place] for place in chosen]

    def see(self, bottom: Tensor, index: int) -> Tensor:
        cells = cells_of(bottom, self.boxes)
        height, width = bottom.shape[2:]
        scale = self.options.anchors_scale[index]
        size = cells.new_tensor([width * scale, height * scale])
        anchors = cells.new_tensor(self.anchors_of(index)) / size
        if self.options.gaussian_box:
            centres, sides = cells[..., 0:4:2], cells[..., 4:8:2]
            certainty = 1 - cells[..., 1:8:2].sigmoid().mean(-1)
            objects = cells[..., 8].sigmoid() * certainty
        else:
            centres, sides = cells[..., :2], cells[..., 2:4]
            objects = cells[..., 4].sigmoid()
        scores = cells[..., self.values() :].sigmoid() * objects.unsqueeze(-1)
        *places, labels = found = (scores > self.options.confidence_threshold).nonzero(
            as_tuple=True
        )
        boxes = corners_of(centres, sides, anchors)[tuple(places)]
        columns = [torch.zeros_like(scores[found]), labels + 1.0, scores[found]]
        return torch.cat([torch.stack(columns, -1), boxes], -1)
