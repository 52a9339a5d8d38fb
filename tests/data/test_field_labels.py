"""Labels of cells against the rules, cell by cell."""

from __future__ import annotations

import math

import numpy as np
import pytest

from caffe_dns.data.field_labels import FieldLabels, FieldMap
from caffe_dns.data.object_crops import Placed
from caffe_dns.data.object_files import Objects

CANVAS = (64, 96)
MAPS = [FieldMap(20, 24, 8), FieldMap(40, 40, 16)]


def common(first: list[float], second: list[float]) -> float:
    spans = [min(first[i + 2], second[i + 2]) - max(first[i], second[i]) for i in (0, 1)]
    return max(spans[0], 0) * max(spans[1], 0)


def whole(value: float) -> int:
    return math.floor(value + 0.5)


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def reference(
    boxes: list, classes: list, ignored: list, aside: list, image: tuple[int, int, int, int]
) -> list[np.ndarray]:
    """What the rules of the fork's loop give; `image` is left, top, width and height."""
    left, top, width, height = image
    maps = []
    best, where, times = [0.0] * len(boxes), [0] * len(boxes), [0] * len(boxes)
    for index, one in enumerate(MAPS):
        rows, columns = CANVAS[0] // one.rate, CANVAS[1] // one.rate
        made = np.zeros((6, rows, columns))
        for y in range(rows):
            for x in range(columns):
                middle = (x + 0.5) * one.rate, (y + 0.5) * one.rate
                field = [middle[0] - one.width / 2, middle[1] - one.height / 2]
                field += [middle[0] + one.width / 2, middle[1] + one.height / 2]
                x0, y0 = whole(left / one.rate), whole(top / one.rate)
                beside = not (x0 <= x < x0 + whole(width / one.rate))
                beside |= not (y0 <= y < y0 + whole(height / one.rate))
                share = sum(common(field, box) for box in aside) / area(field)
                if beside or share >= 0.4:
                    made[5, y, x] = 1
                    continue
                most, match = 0.0, -1
                for at, box in enumerate(boxes):
                    part = common(field, box)
                    part /= area(field) + area(box) - part
                    if part > most:
                        most, match = part, at
                    if part > best[at]:
                        best[at], where[at] = part, index
                made[5, y, x] = most
                if most > 0.5:
                    a, b, c, d = boxes[match]
                    made[0, y, x] = 0 if ignored[match] else classes[match]
                    made[1:5, y, x] = (a + c) / 2, (b + d) / 2, c - a, d - b
                    times[match] += 1
        maps.append(made)
    for at, (a, b, c, d) in enumerate(boxes):
        if ignored[at] or times[at] or best[at] < 0.2:
            continue
        made, rate = maps[where[at]], MAPS[where[at]].rate
        x = min(math.floor((a + c) / 2 / rate), made.shape[2] - 1)
        y = min(math.floor((b + d) / 2 / rate), made.shape[1] - 1)
        if made[0, y, x] <= 0:
            made[0, y, x] = classes[at]
            made[1:5, y, x] = (a + c) / 2, (b + d) / 2, c - a, d - b
    return maps


@pytest.mark.parametrize("image", [(0, 0, 96, 64), (16, 8, 64, 48)])
@pytest.mark.parametrize("seed", range(6))
def test_labels(seed: int, image: tuple[int, int, int, int]) -> None:
    draws = np.random.default_rng(seed)
    count = [0, 1, 4, 9, 9, 9][seed]
    corners = draws.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + draws.uniform(8, 45, (count, 2))], 1)
    classes = draws.integers(1, 4, count).astype(float)
    ignored = draws.integers(0, 3, count) == 0
    start = draws.uniform(0, 60, (2, 2))
    aside = np.concatenate([start, start + draws.uniform(5, 25, (2, 2))], 1)[: seed % 3]
    objects = Objects(boxes, classes, ignored, aside)
    left, top, width, height = image
    placed = Placed(np.zeros((height, width, 3), np.uint8), top, left, objects)
    labels = FieldLabels(MAPS, CANVAS, 0.5, 0, 0)
    made = labels.label(placed)
    expected = reference(boxes.tolist(), classes.tolist(), ignored.tolist(), aside.tolist(), image)
    for one, other in zip(made, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
    assert (seed < 3) or any(one[0].any() for one in made)


def test_objects_outside_or_too_small_are_ignored() -> None:
    boxes = [[0, 0, 20, 20], [-30, 0, 20, 20], [90, 0, 110, 20], [5, 5, 13, 30], [5, 5, 30, 13]]
    objects = Objects(np.array(boxes, float), np.ones(5), np.zeros(5, bool), np.zeros((0, 4)))
    labels = FieldLabels(MAPS, CANVAS, 0.5, 10, 10)
    assert labels.ignore(objects).ignored.tolist() == [False, True, True, True, True]
