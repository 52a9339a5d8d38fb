"""Yolov3 against its rules, box by box and object by object, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from tests.layers.detection.reference import overlap
from tests.layers.harness import draw, make_layer, refused, run
from tests.layers.test_recurrent import sigmoid

CLASSES, IMAGES, HEIGHT, WIDTH, PIXELS = 3, 2, 4, 5, 8
ANCHORS = [(6.0, 5.0), (9.0, 14.0), (20.0, 12.0), (22.0, 24.0)]
MASK = [1, 2, 3]
VALUES = 5 + CLASSES
#: Class, centre and sides; the first image has two objects in a cell, the second one for a box that
#: has been given already and one that is like an anchor beyond the mask.
OBJECTS: list[list[list[float]]] = [
    [[1, 0.33, 0.40, 0.50, 0.35], [2, 0.35, 0.42, 0.22, 0.45], [0] * 5, [1, 0.5, 0.5, 0.3, 0.3]],
    [[0, 0.71, 0.10, 0.52, 0.70], [2, 0.72, 0.12, 0.50, 0.75], [1, 0.9, 0.9, 0.15, 0.14], [0] * 5],
]


def bottoms() -> list[Tensor]:
    objects = torch.tensor(OBJECTS, dtype=torch.float64)[:, None]
    return [draw(IMAGES, len(MASK) * VALUES, HEIGHT, WIDTH, seed=4), objects]


def loss_text(more: str = "", mask: list[int] = MASK) -> str:
    biases = [value for pair in ANCHORS for value in pair]
    return (
        f"type: 'Yolov3' yolov3_param {{ num_class: {CLASSES} num: {len(mask)} thresh: 0.3 "
        f"object_scale: 5 class_scale: 2 coord_scale: 3 anchors_scale: {PIXELS} biases: {biases} "
        f"mask: {mask} {more} }}"
    )


def around(x: float, y: float, width: float, height: float) -> tuple[float, ...]:
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def reference(bottom: np.ndarray, thresh: float, logic: bool, smooth: float) -> np.ndarray:
    """What the fork squares."""
    found = np.zeros_like(bottom)
    sides = [(w / (WIDTH * PIXELS), h / (HEIGHT * PIXELS)) for w, h in ANCHORS]
    for image in range(IMAGES):
        seen = OBJECTS[image][: [bool(row[1]) for row in OBJECTS[image]].index(False)]
        for y, x, box in np.ndindex(HEIGHT, WIDTH, len(MASK)):
            values = bottom[image, box * VALUES : (box + 1) * VALUES, y, x]
            middle = (x + sigmoid(values[0])) / WIDTH, (y + sigmoid(values[1])) / HEIGHT
            size = [math.exp(values[2 + i]) * sides[MASK[box]][i] for i in (0, 1)]
            shares = [overlap(around(*middle, *size), around(*row[1:])) for row in seen]
            if max(shares) <= 0.3:
                found[image, box * VALUES + 4, y, x] = sigmoid(values[4])
        for row in seen:
            label, (mx, my, w, h) = int(row[0]), row[1:]
            x, y = int(mx * WIDTH), int(my * HEIGHT)
            likeness = [overlap(around(0, 0, *side), around(0, 0, w, h)) for side in sides]
            best = int(np.argmax(likeness))
            if best in MASK:
                best = MASK.index(best)
                give(found, bottom, image, (y, x, best), row, logic, smooth)
            for anchor, like in enumerate(likeness):
                if anchor in MASK and anchor != best and thresh < 1 and like > thresh:
                    place = y, x, MASK.index(anchor)
                    give(found, bottom, image, place, row, logic, smooth)
            assert 0 <= label < CLASSES
    return found


def give(
    found: np.ndarray,
    bottom: np.ndarray,
    image: int,
    place: tuple[int, int, int],
    row: list[float],
    logic: bool,
    smooth: float,
) -> None:
    y, x, box = place
    values = bottom[image, box * VALUES : (box + 1) * VALUES, y, x]
    result = found[image, box * VALUES : (box + 1) * VALUES, y, x]
    label, (mx, my, w, h) = int(row[0]), row[1:]
    scale = 3 * (2 - w * h)
    anchor = ANCHORS[MASK[box]]
    result[0] = -scale * (mx * WIDTH - x - sigmoid(values[0]))
    result[1] = -scale * (my * HEIGHT - y - sigmoid(values[1]))
    result[2] = -scale * (math.log(w * WIDTH * PIXELS / anchor[0]) - values[2])
    result[3] = -scale * (math.log(h * HEIGHT * PIXELS / anchor[1]) - values[3])
    result[4] = -(1 - sigmoid(values[4])) * (5 if logic else 1)
    one, none = 1 - smooth / 2, smooth / 2
    if result[5 + label]:
        result[5 + label] = -2 * (one - sigmoid(values[5 + label]))
        return
    for kind in range(CLASSES):
        result[5 + kind] = -2 * ((one if kind == label else none) - sigmoid(values[5 + kind]))


@pytest.mark.parametrize("thresh", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("logic", [False, True])
def test_loss(thresh: float, logic: bool) -> None:
    """The gradient is what the fork sends back, and the loss the mean of its squares."""
    bottom, objects = bottoms()
    more = f"iou_thresh: {thresh} use_logic_gradient: {str(logic).lower()} label_smooth_eps: 0.25"
    made = make_layer(loss_text(more), tuple(bottom.shape), tuple(objects.shape))
    expected = reference(bottom.numpy(), thresh, logic, 0.25)
    assert (expected.reshape(IMAGES, len(MASK), VALUES, -1)[:, :, 5] != 0).sum() >= 3
    leaf = bottom.clone().requires_grad_()
    (loss,) = run(made, leaf, objects)
    np.testing.assert_allclose(float(loss.detach()), (expected**2).sum() / IMAGES, rtol=1e-10)
    (3 * loss).backward()
    shares = sigmoid(bottom.numpy())
    slopes = shares * (1 - shares) if logic else np.ones_like(shares)
    by_value = slopes.reshape(IMAGES, len(MASK), VALUES, HEIGHT, WIDTH)
    by_value[:, :, 2:4] = 1
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad, 3 * expected * slopes / IMAGES, rtol=1e-9, atol=1e-12)


def test_no_objects() -> None:
    bottom, objects = bottoms()
    made = make_layer(loss_text(), tuple(bottom.shape), tuple(objects.shape))
    sure = sigmoid(bottom.view(IMAGES, len(MASK), VALUES, -1)[:, :, 4].numpy())
    (loss,) = run(made, bottom, 0 * objects)
    np.testing.assert_allclose(loss, (sure**2).sum() / IMAGES, rtol=1e-10)


def test_an_object_without_extent_gets_no_box() -> None:
    bottom, objects = bottoms()
    made = make_layer(loss_text(), tuple(bottom.shape), tuple(objects.shape))
    flat = 0 * objects
    flat[0, 0, 0] = torch.tensor([1, 0.5, 0.5, 0.3, 0])
    np.testing.assert_allclose(made(bottom, flat), made(bottom, 0 * objects), rtol=1e-12)


@pytest.mark.parametrize(
    ("row", "message"),
    [([3, 0.5, 0.5, 0.3, 0.3], "class"), ([0, 1.2, 0.5, 0.3, 0.3], "column of an object")],
)
def test_objects_that_do_not_fit(row: list[float], message: str) -> None:
    bottom, objects = bottoms()
    made = make_layer(loss_text(), tuple(bottom.shape), tuple(objects.shape))
    objects[1, 0, 0] = torch.tensor(row)
    with pytest.raises(CaffeError, match=message):
        made(bottom, objects)


def test_what_does_not_fit() -> None:
    shapes = tuple(tuple(each.shape) for each in bottoms())
    assert "iou_loss: is not supported; MSE" in refused(loss_text("iou_loss: GIOU"), *shapes)
    assert "use_focal_loss: is not supp" in refused(loss_text("use_focal_loss: true"), *shapes)
    assert "mask: is [1, 2, 4]; the number, below 4" in refused(loss_text("", [1, 2, 4]), *shapes)
    assert "biases: has 9 values; pairs" in refused(loss_text("biases: 3"), *shapes)
    assert "N x 24 x H x W would be right" in refused(loss_text(), (2, 23, 4, 5), shapes[1])
    assert "2 x 1 x objects x 5, as Annotated" in refused(loss_text(), shapes[0], (1, 1, 2, 8))
