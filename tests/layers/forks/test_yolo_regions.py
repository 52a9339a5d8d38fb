"""RegionLoss and EvalDetection against their rules, box by box, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from tests.layers.detection.reference import overlap
from tests.layers.harness import draw, make_layer, refused, run

CLASSES, BOXES, IMAGES, SIDE = 3, 2, 2, 4
ANCHORS = [(1.5, 2.0), (3.0, 1.0)]
BIASES = " ".join(f"biases: {value}" for pair in ANCHORS for value in pair)
#: Image, class from 1 on, a number, corners, and a number; the second and third are in one cell.
OBJECTS: list[list[float]] = [
    [0, 2, 0, 0.10, 0.20, 0.45, 0.70, 0],
    [0, 1, 1, 0.52, 0.55, 0.88, 0.95, 0],
    [0, 3, 2, 0.55, 0.52, 0.90, 0.98, 0],
    [1, 1, 0, 0.05, 0.60, 0.75, 0.85, 0],
    [-1] * 8,
]


def bottoms() -> list[Tensor]:
    objects = torch.tensor(OBJECTS).double()[None, None]
    return [draw(IMAGES, BOXES * (5 + CLASSES), SIDE, SIDE, seed=4), objects]


def loss_text(more: str = "") -> str:
    return (
        f"type: 'RegionLoss' region_loss_param {{ side: {SIDE} num_class: {CLASSES} num: {BOXES} "
        f"object_scale: 5 noobject_scale: 0.5 class_scale: 2 coord_scale: 3 thresh: 0.3 {BIASES} "
        f"{more} }}"
    )


def eval_text(more: str = "nms: 0.45 threshold: 0.2") -> str:
    return (
        f"type: 'EvalDetection' eval_detection_param {{ side: {SIDE} num_class: {CLASSES} "
        f"num_object: {BOXES} {BIASES} {more} }}"
    )


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax(values: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.exp(values - values.max())
    return shares / shares.sum()


def box_of(values: np.ndarray, x: int, y: int, box: int) -> tuple[float, ...]:
    middle = (x + sigmoid(values[0])) / SIDE, (y + sigmoid(values[1])) / SIDE
    half = [math.exp(values[2 + i]) * ANCHORS[box][i] / SIDE / 2 for i in (0, 1)]
    return (*(middle[i] - half[i] for i in (0, 1)), *(middle[i] + half[i] for i in (0, 1)))


def around(width: float, height: float) -> tuple[float, ...]:
    return -width / 2, -height / 2, width / 2, height / 2


def reference(bottom: np.ndarray, by_anchor: bool) -> np.ndarray:
    """What is sent back for a loss weight of 1 and one image."""
    found = np.zeros_like(bottom)
    for image, y, x, box in np.ndindex(IMAGES, SIDE, SIDE, BOXES):
        place = slice(box * (5 + CLASSES), (box + 1) * (5 + CLASSES))
        values = bottom[image, place, y, x]
        own = [row[3:7] for row in OBJECTS if row[0] == image]
        near = max(overlap(box_of(values, x, y, box), tuple(row)) for row in own) > 0.3
        sure = sigmoid(values[4])
        found[image, place, y, x][4] = 0 if near else 0.5 * sure * sure * (1 - sure)
    for row in OBJECTS[:-1]:
        image, label = int(row[0]), int(row[1])
        x1, y1, x2, y2 = row[3:7]
        width, height, mx, my = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
        x, y = int(mx * SIDE), int(my * SIDE)
        shares = []
        for box in range(BOXES):
            w, h = (side / SIDE for side in ANCHORS[box])
            if not by_anchor:
                values = bottom[image, box * (5 + CLASSES) :, y, x]
                w, h = w * math.exp(values[2]), h * math.exp(values[3])
            shares.append(overlap(around(w, h), around(width, height)))
        best = int(np.argmax(shares))
        place = slice(best * (5 + CLASSES), (best + 1) * (5 + CLASSES))
        values = bottom[image, place, y, x]
        result = np.zeros(5 + CLASSES)
        for i, (middle, cell) in enumerate(((mx, x), (my, y))):
            at = sigmoid(values[i])
            off = min(max(middle * SIDE - cell - at, -1), 1)
            result[i] = -3 * off * at * (1 - at)
        for i, side in enumerate((width, height)):
            off = math.log(side * SIDE / ANCHORS[best][i]) - values[2 + i]
            result[2 + i] = -3 * min(max(off, -1), 1)
        sure = sigmoid(values[4])
        result[4] = -5 * 2 * (1 - sure) ** 3 * sure * (1 - sure)
        result[5:] = 2 * softmax(values[5:])
        result[4 + label] -= 2
        found[image, place, y, x] = result
    return found


@pytest.mark.parametrize("by_anchor", [True, False])
def test_region_loss(by_anchor: bool) -> None:
    """The gradient is what the fork sends back, and the loss the sum of its squares."""
    bottom, objects = bottoms()
    made = make_layer(
        loss_text(f"bias_match: {int(by_anchor)}"), tuple(bottom.shape), tuple(objects.shape)
    )
    expected = reference(bottom.numpy(), by_anchor)
    leaf = bottom.clone().requires_grad_()
    (loss,) = run(made, leaf, objects)
    np.testing.assert_allclose(float(loss.detach()), (expected**2).sum(), rtol=1e-6)
    (3 * loss).backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, 3 * expected / IMAGES, rtol=1e-5, atol=1e-12)


def centred(rows: list[list[float]]) -> Tensor:
    """The same objects as MobileNet-YOLO has them, with one behind the end of each list."""
    found = torch.zeros(IMAGES, 1, 6, 5, dtype=torch.float64)
    for image in range(IMAGES):
        own = [row for row in rows if row[0] == image]
        for at, (_, label, _, x1, y1, x2, y2, _) in enumerate(own):
            box = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
            found[image, 0, at] = torch.tensor([label - 1, *box], dtype=torch.float64)
        found[image, 0, len(own) + 1] = found[image, 0, 0]
    return found


@pytest.mark.parametrize("rescore", [0, 1])
def test_region_loss_of_mobilenet_yolo(rescore: int) -> None:
    """Places and sides without limits, and how sure a box is to be; a map of another side."""
    bottom, _ = bottoms()
    objects = centred(OBJECTS)
    text = loss_text(f"rescore: {rescore}").replace(f"side: {SIDE}", "side: 13")
    made = make_layer(text, tuple(bottom.shape), tuple(objects.shape))
    expected = reference(bottom.numpy(), by_anchor=True)
    taken = {}
    for row in OBJECTS[:-1]:
        image, label = int(row[0]), int(row[1])
        x1, y1, x2, y2 = row[3:7]
        width, height, mx, my = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
        x, y = int(mx * SIDE), int(my * SIDE)
        likeness = [overlap(around(w / SIDE, h / SIDE), around(width, height)) for w, h in ANCHORS]
        taken[image, int(np.argmax(likeness)), y, x] = (label, width, height, mx, my)
    for (image, box, y, x), (_, width, height, mx, my) in taken.items():
        values = bottom[image, box * (5 + CLASSES) : (box + 1) * (5 + CLASSES), y, x].numpy()
        result = expected[image, box * (5 + CLASSES) : (box + 1) * (5 + CLASSES), y, x]
        scale = 3 if rescore else 3 * (2 - width * height)
        for i, (middle, cell, side) in enumerate(((mx, x, width), (my, y, height))):
            at = sigmoid(values[i])
            result[i] = -scale * (middle * SIDE - cell - at) * at * (1 - at)
            result[2 + i] = -scale * (math.log(side * SIDE / ANCHORS[box][i]) - values[2 + i])
        whole = mx - width / 2, my - height / 2, mx + width / 2, my + height / 2
        wanted = overlap(box_of(values, x, y, box), whole) if rescore else 1
        sure = sigmoid(values[4])
        result[4] = -5 * (wanted - sure) * sure * (1 - sure)
    leaf = bottom.clone().requires_grad_()
    (loss,) = run(made, leaf, objects)
    np.testing.assert_allclose(float(loss.detach()), (expected**2).sum() / IMAGES, rtol=1e-6)
    (3 * loss).backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, 3 * expected / IMAGES, rtol=1e-5, atol=1e-9)


def test_region_loss_without_objects() -> None:
    bottom, objects = bottoms()
    made = make_layer(loss_text(), tuple(bottom.shape), tuple(objects.shape))
    sure = torch.sigmoid(bottom.view(IMAGES, BOXES, -1, SIDE, SIDE)[:, :, 4])
    expected = (0.5 * sure**2 * (1 - sure)).square().sum()
    torch.testing.assert_close(made(bottom, torch.full_like(objects, -1)), expected)


@pytest.mark.parametrize("kind", ["OBJ", "PROB", "MULTIPLY"])
def test_eval_detection(kind: str) -> None:
    bottom, objects = bottoms()
    # Two boxes of an object's class near it, in cells of their own, and one far from it.
    for at, x in ((0, 1), (1, 0)):
        near = bottom[1, at * (5 + CLASSES) : (at + 1) * (5 + CLASSES), 2, x]
        near[:] = torch.tensor([2.0 - 4 * at, 1.0, 0.1, 0.1, 2.0, 4.0, 0, 0])
    made = make_layer(
        eval_text(f"nms: 0.45 threshold: 0.3 score_type: {kind}"),
        tuple(bottom.shape),
        tuple(objects.shape),
    )
    (top,) = run(made, bottom, objects)
    verdicts = set()
    for image in range(IMAGES):
        own = [row for row in OBJECTS if row[0] == image]
        expected = [float(sum(row[1] == label for row in own)) for label in (1, 2, 3)]
        found = []
        for y, x, box in np.ndindex(SIDE, SIDE, BOXES):
            values = bottom[image, box * (5 + CLASSES) : (box + 1) * (5 + CLASSES), y, x].numpy()
            classes = softmax(values[5:])
            sure, most = sigmoid(values[4]), float(classes.max())
            score = {"OBJ": sure, "PROB": most, "MULTIPLY": sure * most}[kind]
            found.append((score, int(classes.argmax()), box_of(values, x, y, box)))
        found.sort(key=lambda row: -row[0])
        kept: list[tuple] = []
        for row in found:
            if all(overlap(row[2], other[2]) < 0.45 for other in kept):
                kept.append(row)
        seen: set[int] = set()
        for score, label, place in sorted(kept, key=lambda row: row[1]):
            right = wrong = 0
            shares = [overlap(place, tuple(row[3:7])) * (row[1] == label + 1) for row in own]
            if not any(row[1] == label + 1 for row in own):
                wrong = 1
            elif max(shares) >= 0.3:
                best = int(np.argmax(shares))
                right, wrong = int(best not in seen), int(best in seen)
                seen.add(best)
            verdicts.add((right, wrong))
            expected += [label, score, right, wrong]
        expected += [0] * (top.shape[1] - len(expected))
        np.testing.assert_allclose(top[image], expected, rtol=1e-6)
    assert verdicts >= {(1, 0), (0, 1), (0, 0)}


def test_low_scores_and_no_suppression() -> None:
    bottom, objects = bottoms()
    bottom.view(IMAGES, BOXES, -1, SIDE, SIDE)[:, :, 4] = -8
    shapes = (tuple(bottom.shape), tuple(objects.shape))
    counts = [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    for text in (eval_text(), eval_text("threshold: 0.2")):
        (top,) = run(make_layer(text, *shapes), bottom, objects)
        assert top[:, :CLASSES].tolist() == counts and not top[:, CLASSES:].any()


def test_what_does_not_fit() -> None:
    good = (IMAGES, 16, SIDE, SIDE), (1, 1, 5, 8)
    assert "num_class: must be positive" in refused(
        loss_text().replace("class: 3", "class: 0"), *good
    )
    assert "has 4 values; a width and a height for each of 3" in refused(
        loss_text().replace("num: 2", "num: 3"), *good
    )
    assert "N x 16 x 4 x 4 would be right" in refused(loss_text(), (2, 16, 4, 5), good[1])
    assert "rows of 8 numbers, as AnnotatedData" in refused(eval_text(), good[0], (2, 1, 300, 5))
    assert "coords: 4 would be right" in refused(loss_text("coords: 5"), *good)
    assert "class_map: is not supported" in refused(loss_text("class_map: 'x'"), *good)
    for column, value, message in (
        (0, 2, "image 2 is out of range; 0 to 1"),
        (1, 4, "class less one 3 is out of range; 0 to 2"),
        (5, 1.99, "the cell of an object 4 is out of range"),
    ):
        bottom, objects = bottoms()
        objects[0, 0, 0, column] = value
        with pytest.raises(CaffeError, match=message):
            make_layer(loss_text(), *good)(bottom, objects)
