"""DetectionEvaluate: which of a detector's boxes are true positives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.boxes import Boxes, areas, intersections, shares, to_pixels
from caffe_dns.data.label_map import read_names_and_sizes
from caffe_dns.data.resizing import check_resize
from caffe_dns.layers.base import Layer, Shape, layer_types

#: A row of the top, and the places of what a label row and a detection say.
ROW = 5
_IMAGE, _LABEL, _SCORE, _DIFFICULT = 0, 1, 2, 7
_OBJECT_BOX, _FOUND_BOX = slice(3, 7), slice(3, 7)


@layer_types.register("DetectionEvaluate")
class DetectionEvaluate(Layer):
    """Marks the boxes found as right or wrong (`detection_evaluate_layer.cpp`).

    Bottoms: the top of DetectionOutput, 1 x 1 x D x 7, and objects, 1 x 1 x G x 8. Top 1 x 1 x rows
    x 5: first a row for each class but the background's, (-1, label, number of objects, -1, -1);
    then one for each box, by image and label: (image, label, score, 1 if right, 1 if wrong). Of the
    boxes that overlap an object enough, the one with the best score is right; what overlaps a
    difficult object is neither, without `evaluate_difficult_gt`. A solver with `eval_type:
    "detection"` makes average precisions of it. Runs on the host.
    """

    bottoms = (2, 2)
    no_force_backward = (0, 1)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = self.param.detection_evaluate_param
        if self.options.num_classes < 1:
            raise self._wrong("num_classes", "must be given, and be positive")
        if self.options.overlap_threshold <= 0:
            raise self._wrong(
                "overlap_threshold",
                f"is {self.options.overlap_threshold:g}; more than 0 would be right",
            )
        background = self.options.background_label_id
        self.labels = [x for x in range(self.options.num_classes) if x != background]
        #: (height, width) of each image; none for boxes that are compared in shares of it.
        self.sizes: list[tuple[int, int]] = []
        if self.options.name_size_file:
            self.sizes = [each.size for each in read_names_and_sizes(self.options.name_size_file)]
        if self.options.HasField("resize_param"):
            check_resize(self.options.resize_param, "detection_evaluate_param.resize_param")
        self._turn = 0

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for shape, row, what in zip(bottom_shapes, (7, 8), ("boxes", "objects"), strict=True):
            if len(shape) != 4 or shape[:2] != (1, 1) or shape[3] != row:
                raise self.error(f"the {what} are 1 x 1 x N x {row}, not {shape}", "bottom")
        return [(1, 1, len(self.labels) + bottom_shapes[0][2], ROW)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        found, objects = (bottom.cpu().numpy()[0, 0] for bottom in bottoms)
        found, objects = found[found[:, _IMAGE] >= 0], objects[objects[:, _IMAGE] >= 0]
        background = self.options.background_label_id
        for rows, what in ((found, "a box"), (objects, "an object")):
            if (rows[:, _LABEL] == background).any():
                raise self.error(f"{what} has the background's label {background}", "bottom")
        lines: list[tuple[float, ...]] = [
            (-1, label, self._count(objects, label), -1, -1) for label in self.labels
        ]
        lines += self._judge_all(found, objects)
        if self.sizes:
            images = max(int(rows[:, _IMAGE].max(initial=-1)) for rows in (found, objects))
            self._turn = (self._turn + images + 1) % len(self.sizes)
        return torch.tensor(lines, dtype=bottoms[0].dtype, device=bottoms[0].device)[None, None]

    def _count(self, objects: Boxes, label: int) -> int:
        """How many objects of a label there are."""
        its = objects[:, _LABEL] == label
        if not self.options.evaluate_difficult_gt:
            its &= objects[:, _DIFFICULT] == 0
        return int(its.sum())

    def _judge_all(self, found: Boxes, objects: Boxes) -> Iterator[tuple[float, ...]]:
        """The row of each box."""
        pairs = found[:, [_IMAGE, _LABEL]].astype(int)
        for image, label in np.unique(pairs[pairs[:, 1] >= 0], axis=0).tolist():
            its = found[(pairs == (image, label)).all(1)]
            same = (objects[:, _IMAGE] == image) & (objects[:, _LABEL] == label)
            its = its[np.argsort(-its[:, _SCORE], kind="stable")]
            marks = self._judge(image, its[:, _FOUND_BOX], objects[same])
            for score, (right, wrong) in zip(its[:, _SCORE].tolist(), marks, strict=True):
                yield image, label, score, right, wrong

    def _judge(self, image: int, boxes: Boxes, objects: Boxes) -> Iterator[tuple[int, int]]:
        """Whether each of the boxes of one image and label, best first, is right, and wrong."""
        if not len(objects):
            yield from [(0, 1)] * len(boxes)
            return
        difficult = (objects[:, _DIFFICULT] != 0) & (not self.options.evaluate_difficult_gt)
        taken = np.zeros(len(objects), bool)
        for overlap in self._overlaps(image, boxes, objects[:, _OBJECT_BOX]):
            best = int(overlap.argmax())
            if overlap[best] < self.options.overlap_threshold:
                yield 0, 1
            elif difficult[best]:
                yield 0, 0
            else:
                yield int(not taken[best]), int(taken[best])
                taken[best] = True

    def _overlaps(self, image: int, boxes: Boxes, objects: Boxes) -> Boxes:
        """The overlap of each box with each object."""
        if self.sizes:
            resize = self.options.resize_param if self.options.HasField("resize_param") else None
            size = self.sizes[(self._turn + image) % len(self.sizes)]
            (boxes, mine), (objects, theirs) = (
                to_pixels(each, size, resize) for each in (boxes, objects)
            )
        else:
            mine, theirs = areas(boxes), areas(objects)
        common = intersections(boxes[:, None], objects[None], in_pixels=bool(self.sizes))
        return shares(common, mine[:, None] + theirs[None] - common)

    def _wrong(self, name: str, message: str) -> Any:
        return self.error(message, f"detection_evaluate_param.{name}")
