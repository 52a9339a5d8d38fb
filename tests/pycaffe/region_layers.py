"""The Python layers of a small Faster R-CNN, written as py-faster-rcnn writes its own.

That is: settings are in `param_str_`, tops get their shapes in `forward`, random draws come from
numpy's global state, the phase is a word, and a program hands the data layer its images. Boxes are
rows of (x1, y1, x2, y2) in pixels, the last of which belongs to the box.
"""

from __future__ import annotations

import ast
from typing import Any

import caffe  # type: ignore[import-not-found]
import numpy as np

#: Of proposals: how many are looked at, how many stay, which overlap is too much, the least side.
LIMITS = {"TRAIN": (60, 20, 0.7, 4.0), "TEST": (30, 8, 0.5, 4.0)}
CLASSES = 3
ROIS = 16


def settings_of(layer: Any) -> dict[str, Any]:
    found: dict[str, Any] = ast.literal_eval("{" + layer.param_str_ + "}")
    return found


def make_anchors(scales: list[int], stride: int, height: int, width: int) -> np.ndarray:
    """Squares around every place of a map, place after place."""
    x, y = np.meshgrid(np.arange(width) * stride, np.arange(height) * stride)
    centres = np.stack([x, y, x, y], -1).reshape(-1, 1, 4) + stride / 2
    sides = np.array(scales)[:, None] / 2 * [-1, -1, 1, 1]
    return (centres + sides - [0, 0, 1, 1]).reshape(-1, 4)


def middles(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sides = boxes[:, 2:4] - boxes[:, :2] + 1
    return boxes[:, :2] + sides / 2, sides


def encode(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    (centres, sides), (theirs, extents) = middles(boxes), middles(objects)
    return np.hstack([(theirs - centres) / sides, np.log(extents / sides)])


def decode(boxes: np.ndarray, codes: np.ndarray) -> np.ndarray:
    centres, sides = middles(boxes)
    centres = centres + codes[:, :2] * sides
    halves = np.exp(codes[:, 2:]) * sides / 2
    return np.hstack([centres - halves, centres + halves])


def overlaps(boxes: np.ndarray, objects: np.ndarray) -> np.ndarray:
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:4], objects[None, :, 2:4])
    common = np.clip(high - low + 1, 0, None).prod(2)
    mine, theirs = (middles(each)[1].prod(1) for each in (boxes, objects))
    return common / (mine[:, None] + theirs[None] - common)


def suppress(boxes: np.ndarray, threshold: float) -> list[int]:
    """The indices of boxes, best first, that no better one covers."""
    left, kept = np.arange(len(boxes)), []
    while len(left):
        kept.append(int(left[0]))
        covered = overlaps(boxes[left[:1]], boxes[left[1:]])[0] > threshold
        left = left[1:][~covered]
    return kept


class WithoutGradient(caffe.Layer):
    def reshape(self, bottom: Any, top: Any) -> None:
        """Tops get their shapes in the forward pass."""

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        """No gradient."""

    def hand_over(self, top: Any, arrays: list[np.ndarray]) -> None:
        for blob, array in zip(top, arrays, strict=True):
            blob.reshape(*array.shape)
            blob.data[...] = array.astype(np.float32, copy=False)


class Images(WithoutGradient):
    """Image, its height, width and scale, and its objects, (box, label) in each row."""

    def setup(self, bottom: Any, top: Any) -> None:
        assert settings_of(self)["num_classes"] == CLASSES
        for blob, shape in zip(top, [(1, 3, 40, 56), (1, 3), (1, 4)], strict=True):
            blob.reshape(*shape)

    def set_images(self, images: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.images, self.turn = images, 0

    def forward(self, bottom: Any, top: Any) -> None:
        image, objects = self.images[self.turn % len(self.images)]
        self.turn += 1
        self.hand_over(top, [image[None], np.array([[*image.shape[1:], 1.5]]), objects])


class AnchorTargets(WithoutGradient):
    """Label (1, 0, or -1 for what does not count), code and its weights, for each anchor."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.options = settings_of(self)
        height, width = bottom[0].data.shape[-2:]
        number = len(self.options["scales"])
        top[0].reshape(1, 1, number * height, width)
        for blob in top[1:]:
            blob.reshape(1, 4 * number, height, width)

    def forward(self, bottom: Any, top: Any) -> None:
        height, width = bottom[0].data.shape[-2:]
        objects, extents = bottom[1].data, bottom[2].data[0]
        scales = self.options["scales"]
        anchors = make_anchors(scales, self.options["feat_stride"], height, width)
        inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2:] < extents[[1, 0]]).all(1)
        found = overlaps(anchors, objects)
        best = found.max(1)
        labels = np.where(best >= 0.5, 1.0, np.where(best < 0.3, 0.0, -1.0))
        labels[(found == found[inside].max(0)).any(1)] = 1
        labels[~inside] = -1
        none = np.flatnonzero(labels == 0)
        labels[np.random.choice(none, max(0, len(none) - 32), replace=False)] = -1
        codes = encode(anchors, objects[found.argmax(1)])
        weights = np.repeat((labels == 1)[:, None], 4, 1).astype(float)
        shape = (1, height, width, len(scales), 4)
        maps = [
            rows.reshape(shape).transpose(0, 3, 4, 1, 2).reshape(1, -1, height, width)
            for rows in (codes, weights, weights / (labels >= 0).sum())
        ]
        labels = labels.reshape(shape[:4]).transpose(0, 3, 1, 2).reshape(1, 1, -1, width)
        self.hand_over(top, [labels, *maps])


class Proposals(WithoutGradient):
    """The best boxes that the maps of scores and codes tell: (0, box) in each row, and scores."""

    def setup(self, bottom: Any, top: Any) -> None:
        self.options = settings_of(self)
        top[0].reshape(1, 5)
        if len(top) > 1:
            top[1].reshape(1, 1, 1, 1)

    def forward(self, bottom: Any, top: Any) -> None:
        looked_at, stay, threshold, least = LIMITS[str(self.phase)]
        scales, (height, width) = self.options["scales"], bottom[0].data.shape[-2:]
        scores = bottom[0].data[0, len(scales) :].transpose(1, 2, 0).reshape(-1, 1)
        codes = bottom[1].data[0].transpose(1, 2, 0).reshape(-1, 4)
        high, wide, scale = bottom[2].data[0]
        boxes = decode(make_anchors(scales, self.options["feat_stride"], height, width), codes)
        boxes = np.clip(boxes, 0, [wide - 1, high - 1] * 2)
        large = (middles(boxes)[1] >= least * scale).all(1)
        boxes, scores = boxes[large], scores[large]
        order = np.argsort(-scores[:, 0], kind="stable")[:looked_at]
        boxes, scores = boxes[order], scores[order]
        kept = suppress(boxes, threshold)[:stay]
        rows = np.hstack([np.zeros((len(kept), 1)), boxes[kept]])
        self.hand_over(top, [rows, scores[kept]][: len(top)])


class ProposalTargets(WithoutGradient):
    """Some proposals, their labels, and for each the code of its object with its weights."""

    def setup(self, bottom: Any, top: Any) -> None:
        for blob, extent in zip(top, (5, 1, 4 * CLASSES, 4 * CLASSES, 4 * CLASSES), strict=True):
            blob.reshape(1, extent)

    def forward(self, bottom: Any, top: Any) -> None:
        rois, objects = bottom[0].data, bottom[1].data
        rois = np.vstack([rois, np.hstack([np.zeros((len(objects), 1)), objects[:, :4]])])
        found = overlaps(rois[:, 1:], objects)
        right = np.flatnonzero(found.max(1) >= 0.5)
        wrong = np.flatnonzero(found.max(1) < 0.5)
        wrong = np.random.permutation(wrong)[: ROIS - len(right)]
        taken = np.append(right, wrong)
        labels = objects[found[taken].argmax(1), 4]
        labels[len(right) :] = 0
        codes = np.zeros((len(taken), CLASSES, 4))
        which = np.arange(len(right)), labels[: len(right)].astype(int)
        codes[which] = encode(rois[right, 1:], objects[found[right].argmax(1)])
        weights = np.zeros_like(codes)
        weights[which] = 1
        flat = [array.reshape(len(taken), -1) for array in (codes, weights, weights)]
        self.hand_over(top, [rois[taken], labels, *flat])
