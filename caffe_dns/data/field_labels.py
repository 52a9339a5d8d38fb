"""Which cells of a net's maps should detect which object, by overlap with their fields (MS-CNN).

A cell of a map looks at a field of `width` x `height` pixels around its middle; cells are `rate`
pixels apart. The rules are those of `image_gt_data_layer.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from caffe_dns.data.boxes import Boxes, Size, areas, intersections, overlaps, rounded
from caffe_dns.data.object_crops import Placed
from caffe_dns.data.object_files import Objects

#: Numbers of a cell: class, x and y of the object's middle, its sides, the overlap with it.
NUMBERS = 6
#: From so much of its field in regions of no interest on, a cell is left out.
_ASIDE = 0.4
#: An object that no cell sees goes to the cell at its middle, if any overlaps it by so much.
_LEAST = 0.2


@dataclass(frozen=True)
class FieldMap:
    """What the cells of one map look at."""

    width: int
    height: int
    rate: int

    def size(self, canvas: Size) -> Size:
        """Rows and columns of the map of an image of this size."""
        return rounded(canvas[0] / self.rate), rounded(canvas[1] / self.rate)

    def fields(self, size: Size) -> Boxes:
        """The corners of the cells' fields [rows, columns, 4]."""
        rows, columns = ((np.arange(extent) + 0.5) * self.rate for extent in size)
        y, x = np.meshgrid(rows, columns, indexing="ij")
        half_w, half_h = self.width / 2, self.height / 2
        return np.stack([x - half_w, y - half_h, x + half_w, y + half_h], -1)


@dataclass(frozen=True)
class FieldLabels:
    """The settings: a map each, the size of images, and which objects count."""

    maps: Sequence[FieldMap]
    canvas: Size
    threshold: float
    least_width: float
    least_height: float

    def ignore(self, objects: Objects) -> Objects:
        """The objects, those ignored that are too small or have their middle outside."""
        x1, y1, x2, y2 = objects.boxes.T
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        outside = (x < 0) | (x >= self.canvas[1]) | (y < 0) | (y >= self.canvas[0])
        small = (x2 - x1 + 1 < self.least_width) | (y2 - y1 + 1 < self.least_height)
        return replace(objects, ignored=objects.ignored | outside | small)

    def label(self, placed: Placed) -> list[Boxes]:
        """The labels of an image whose objects `ignore` has seen: [6, rows, columns] of each map.

        A cell has the class of the object that overlaps its field most, if by more than the
        threshold and that is not ignored. Cells beside the image have an overlap of 1.
        """
        objects = placed.objects
        best = np.zeros(len(objects.boxes))
        best_map = np.zeros(len(best), int)
        seen = np.zeros(len(best), bool)
        labels = []
        for index, map_ in enumerate(self.maps):
            made, shares, chosen = self._one(map_, placed)
            labels.append(made)
            if len(best):
                most = shares.max((0, 1))
                best_map[most > best] = index
                best = np.maximum(best, most)
                seen[chosen] = True
        for at in np.flatnonzero(~objects.ignored & ~seen & (best >= _LEAST)):
            self._give(labels[best_map[at]], self.maps[best_map[at]], objects, int(at))
        return labels

    def _one(self, map_: FieldMap, placed: Placed) -> tuple[Boxes, Boxes, Boxes]:
        """The labels, each cell's overlaps with all objects, and the objects that are seen."""
        objects, size = placed.objects, map_.size(self.canvas)
        labels = np.zeros((NUMBERS, *size))
        fields = map_.fields(size)
        left_out = ~self._within(map_, size, placed)
        if len(objects.aside):
            common = intersections(fields[:, :, None], objects.aside).sum(-1)
            left_out |= common / areas(fields) >= _ASIDE
        shares = np.zeros((*size, len(objects.boxes)))
        chosen = np.zeros(0, int)
        if len(objects.boxes):
            shares = overlaps(fields[:, :, None], objects.boxes)
            shares[left_out] = 0
            labels[5] = shares.max(-1)
            sees = labels[5] > self.threshold
            chosen = shares.argmax(-1)[sees]
            labels[0, sees] = np.where(objects.ignored[chosen], 0, objects.classes[chosen])
            labels[1:5, sees] = _middles_and_sides(objects.boxes[chosen]).T
        labels[5, left_out] = 1
        return labels, shares, chosen

    def _within(self, map_: FieldMap, size: Size, placed: Placed) -> Boxes:
        """Which cells lie on the image [rows, columns]."""
        on = []
        spans = zip((placed.top, placed.left), placed.pixels.shape[:2], size, strict=True)
        for start, extent, count in spans:
            first, long = rounded(start / map_.rate), rounded(extent / map_.rate)
            at = np.arange(count)
            on.append((at >= first) & (at < first + long))
        return on[0][:, None] & on[1]

    def _give(self, labels: Boxes, map_: FieldMap, objects: Objects, at: int) -> None:
        """Let the cell at the middle of an object see it, unless it sees another."""
        values = _middles_and_sides(objects.boxes[at])
        x, y = (math.floor(value / map_.rate) for value in values[:2])
        rows, columns = labels.shape[1:]
        row, column = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
        if labels[0, row, column] <= 0:
            labels[0, row, column] = objects.classes[at]
            labels[1:5, row, column] = values


def _middles_and_sides(boxes: Boxes) -> Boxes:
    low, high = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([(low + high) / 2, high - low], -1)
