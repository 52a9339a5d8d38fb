"""Images brought to one size around one of their objects, with the boxes of all (MS-CNN).

An image is mirrored, resized, resized again so that the object has one of several sizes, and
cropped or padded, as in `image_gt_data_layer.cpp`, in both phases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from caffe_dns.data.boxes import Boxes, Size, rounded
from caffe_dns.data.datum import Image
from caffe_dns.data.object_files import Objects

#: How far off the middle an image may come to lie, in pixels.
_NOISE = 10
#: Sizes are half an octave apart, aspects so much.
_SIZES_IN_OCTAVE, _ASPECT_STEP = 2, 0.05
#: How far beyond the sizes an object may come by another aspect.
_ASPECT_SLACK = 0.2
#: From so much on, an image is cut before it is enlarged, to so many times what is needed.
_LARGE, _CUT = 1.5, 1.2


@dataclass(frozen=True)
class Sizes:
    """The sizes from `least` to `most` that an object may get, and the aspects, if any."""

    least: int
    most: int
    aspects: tuple[float, float] | None

    def draw(self, box: Boxes, draws: np.random.Generator) -> tuple[float, float]:
        """Factors of width and height for an image with this object."""
        width, height = box[2:] - box[:2]
        count = rounded(_SIZES_IN_OCTAVE * math.log2(self.most / self.least) + 1)
        steps = np.arange(count) / _SIZES_IN_OCTAVE
        areas = (self.least * 2**steps) ** 2
        own = width * height
        nearest = int((np.minimum(areas, own) / np.maximum(areas, own)).argmax())
        factor = 2 ** float(steps[draws.integers(count)] - steps[nearest])
        if self.aspects is None or not draws.integers(2) or min(width, height) <= 0:
            return factor, factor
        drawn = self.aspects[0] + draws.integers(aspect_steps(self.aspects)) * _ASPECT_STEP
        change = drawn * height / width
        if draws.integers(2):
            return (factor * change if self._holds(width * factor * change) else factor), factor
        return factor, (factor / change if self._holds(height * factor / change) else factor)

    def _holds(self, side: float) -> bool:
        return self.least * (1 - _ASPECT_SLACK) <= side <= self.most * (1 + _ASPECT_SLACK)


def aspect_steps(aspects: tuple[float, float]) -> int:
    """How many aspects there are to draw from."""
    return rounded((aspects[1] - aspects[0]) / _ASPECT_STEP)


@dataclass(frozen=True)
class Placed:
    """An image on its canvas: pixels [height, width, C] from (top, left) on, and what is in it.

    Boxes are in pixels of the canvas.
    """

    pixels: Image
    top: int
    left: int
    objects: Objects


@dataclass(frozen=True)
class ObjectCrops:
    """Puts images on a canvas of (height, width); before, they get the size `resized`, if any."""

    canvas: Size
    resized: Size | None
    mirror: bool
    sizes: Sizes | None

    def place(self, image: Image, objects: Objects, draws: np.random.Generator) -> Placed:
        """The part of an image [H, W, C] that fits."""
        if self.mirror and draws.integers(2):
            image, objects = image[:, ::-1], _mirrored(objects, image.shape[1])
        if self.resized is not None and image.shape[:2] != self.resized:
            height, width = image.shape[:2]
            objects = _scaled(objects, self.resized[1] / width, self.resized[0] / height)
            image = _resize(image, self.resized)
        chosen = int(draws.integers(len(objects.boxes))) if len(objects.boxes) else None
        centre = self._centre(image, objects, chosen, draws)
        factors = (1.0, 1.0)
        if self.sizes is not None and chosen is not None and draws.integers(2):
            factors = self.sizes.draw(objects.boxes[chosen], draws)
        if max(factors) > _LARGE:
            image, objects, centre = _cut(image, objects, centre, factors)
        size = _whole_size(image, factors)
        if factors != (1.0, 1.0):
            image = _resize(image, size)
            objects = _scaled(objects, *factors)
        spans = []
        for axis in (1, 0):
            noise = int(draws.integers(2 * _NOISE)) - _NOISE
            at = rounded(centre[1 - axis] * factors[1 - axis])
            spans.append(_span(size[axis], self.canvas[axis], at, noise))
        (left, from_x, width), (top, from_y, height) = spans
        part = image[from_y : from_y + height, from_x : from_x + width]
        return Placed(part, top, left, _moved(objects, left - from_x, top - from_y))

    def _centre(
        self, image: Image, objects: Objects, chosen: int | None, draws: np.random.Generator
    ) -> tuple[float, float]:
        """x and y in the image of what is to come into the middle."""
        if chosen is not None:
            box = objects.boxes[chosen]
            return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        found = []
        for axis in (1, 0):
            extent, wanted = image.shape[axis], self.canvas[axis]
            start = int(draws.integers(extent - wanted + 1)) if extent >= wanted else 0
            found.append(start + min(extent, wanted) / 2)
        return found[0], found[1]


def _span(extent: int, wanted: int, centre: int, noise: int) -> tuple[int, int, int]:
    """Along one axis: where the part begins on the canvas, where in the image, and its length."""
    if extent <= wanted:
        if extent == wanted:
            return 0, 0, wanted
        start = rounded((wanted - extent) / 2) + noise
        return min(max(start, 0), wanted - extent), 0, extent
    start = centre + noise - rounded(wanted / 2)
    return 0, min(max(start, 0), extent - wanted), wanted


def _cut(
    image: Image, objects: Objects, centre: tuple[float, float], factors: tuple[float, float]
) -> tuple[Image, Objects, tuple[float, float]]:
    """What is left around the centre when the rest would be lost after enlarging."""
    starts, extents = [], []
    for axis, at, factor in ((1, centre[0], factors[0]), (0, centre[1], factors[1])):
        whole = image.shape[axis]
        extent = min(max(rounded(_CUT * whole / factor), 1), whole)
        start = min(max(rounded(at - extent * 0.5), 0), whole - extent)
        starts.append(start)
        extents.append(extent)
    (x, y), (width, height) = starts, extents
    moved = _moved(objects, -x, -y)
    return image[y : y + height, x : x + width], moved, (centre[0] - x, centre[1] - y)


def _whole_size(image: Image, factors: tuple[float, float]) -> Size:
    height, width = image.shape[:2]
    return max(rounded(height * factors[1]), 1), max(rounded(width * factors[0]), 1)


def _resize(image: Image, size: Size) -> Image:
    import cv2  # here, because importing it takes long and most runs do not need it

    resized: Image = cv2.resize(
        np.ascontiguousarray(image), size[::-1], interpolation=cv2.INTER_LINEAR
    )
    return resized


def _mirrored(objects: Objects, width: int) -> Objects:
    def turned(boxes: Boxes) -> Boxes:
        return np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)

    return replace(objects, boxes=turned(objects.boxes), aside=turned(objects.aside))


def _scaled(objects: Objects, x: float, y: float) -> Objects:
    factors = np.array([x, y, x, y])
    return replace(objects, boxes=objects.boxes * factors, aside=objects.aside * factors)


def _moved(objects: Objects, x: int, y: int) -> Objects:
    shift = np.array([x, y, x, y])
    return replace(objects, boxes=objects.boxes + shift, aside=objects.aside + shift)
