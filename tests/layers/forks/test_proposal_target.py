"""ProposalTarget and BboxAccuracy against their rules, region by region, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers import Layer
from tests.layers.harness import draw, make_layer, refused, run

MEAN, DEVIATION = [0.125, -0.25, 0.0, 0.25], [0.5, 0.25, 0.5, 0.125]
NORM = f"bbox_mean: {MEAN} bbox_std: {DEVIATION}"
#: Image, corners; then class and whether it is ignored.
OBJECTS = [
    [0, 10, 10, 49, 49, 2, 0],
    [0, 60, 10, 99, 69, 1, 0],
    [1, 20, 20, 59, 59, 1, 1],
]
REGIONS = [
    [0, 12, 12, 51, 55],  # on the first
    [0, 58, 14, 99, 69],  # on the second
    [0, 10, 10, 29, 29],  # a quarter of the first
    [0, 200, 200, 240, 240],  # on none
    [1, 22, 20, 61, 60],  # on one that is ignored
    [1, 20, 20, 39, 29],  # an eighth of that
    [0, 35, 10, 74, 49],  # a fifth of the first
]
#: Those that are objects, background, and neither, in order; objects stand behind the regions.
FOREGROUND, BACKGROUND, OTHERS = [0, 1, 7, 8], [2, 5, 6], [3]


def make(more: str, norm: str = NORM, tops: int = 7) -> Layer:
    fields = f"cls_num: 3 num_img_per_batch: 2 bg_thr_lw: 0.1 bg_thr_hg: 0.4 {more}"
    text = f"type: 'ProposalTarget' proposal_target_param {{ {fields} }} "
    text += f"bbox_reg_param {{ {norm} }}"
    return make_layer(text, (len(REGIONS), 5), (len(OBJECTS), 7, 1, 1), tops=tops)


def given() -> tuple[Tensor, Tensor]:
    return torch.tensor(REGIONS).double(), torch.tensor(OBJECTS).double()[..., None, None]


def found() -> list[Tensor]:
    """Regions, and objects as ProposalTarget gives them: on one each, on none, on itself."""
    rows = [[2, *OBJECTS[0][1:5], 0.8], [1, *OBJECTS[1][1:5], 0.7], [0] * 6]
    rows.append([1, *OBJECTS[1][1:5], 0.99])
    regions = [*REGIONS[:3], REGIONS[1]]
    return [torch.tensor(regions).double(), torch.tensor(rows).double()]


def tops_of(layer: Layer) -> list[np.ndarray]:
    return [top.flatten(1).numpy() for top in run(layer, *given())]


def overlap(first: list, second: list) -> float:
    span = [min(first[i + 2], second[i + 2]) + 1 - max(first[i], second[i]) for i in (1, 2)]
    common = max(span[0], 0) * max(span[1], 0)
    areas = [(box[3] - box[1] + 1) * (box[4] - box[2] + 1) for box in (first, second)]
    return common / (sum(areas) - common) if first[0] == second[0] else 0


def codes(region: list, wanted: list) -> list[float]:
    found = []
    for i in (0, 1):
        side, theirs = (box[i + 3] - box[i + 1] + 1 for box in (region, wanted))
        move = (wanted[i + 1] + theirs / 2 - region[i + 1] - side / 2) / side
        found += [(move, i), (math.log(theirs / side), i + 2)]
    found.sort(key=lambda pair: pair[1])
    return [(value - MEAN[i]) / DEVIATION[i] for value, i in found]


@pytest.mark.parametrize("aware", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_all_regions_that_count(aware: bool, weighted: bool) -> None:
    more = f"batch_size: -1 fg_fraction: 0.25 iou_weighted: {str(weighted).lower()}"
    made = make(more, f"{NORM} cls_aware: {str(aware).lower()}")
    everything = REGIONS + [row[:5] for row in OBJECTS]
    # Set up for as many as there are regions; here are as many as count.
    result = [top.flatten(1).numpy() for top in made(*given())]
    rows = FOREGROUND + BACKGROUND
    regions, labels, targets, inner, outer, found, weights = result
    np.testing.assert_array_equal(regions, [everything[row] for row in rows])
    np.testing.assert_array_equal(inner, outer)
    groups = 3 if aware else 2
    shares = []
    for at, row in enumerate(rows):
        best = max(range(3), key=lambda k: overlap(everything[row], OBJECTS[k]))
        share = overlap(everything[row], OBJECTS[best])
        expected = np.zeros((groups, 4))
        on_object = row in FOREGROUND
        label = OBJECTS[best][5] if on_object else 0
        assert labels[at] == label
        if on_object:
            assert share >= 0.5
            expected[min(label, groups - 1)] = codes(everything[row], OBJECTS[best])
            np.testing.assert_allclose(found[at], [label, *OBJECTS[best][1:5], share], rtol=1e-6)
        else:
            assert 0.1 <= share < 0.4
            assert not found[at].any()
        shares.append(share if on_object and weighted else 1.0)
        np.testing.assert_allclose(targets[at], expected.ravel(), rtol=1e-6, atol=1e-12)
        np.testing.assert_array_equal(inner[at].reshape(groups, 4)[:, 0], expected.any(1))
    of_objects = sum(shares[:4])
    for at, share in enumerate(shares):
        factor = 0.25 / of_objects if at < 4 else 0.75 / 3
        np.testing.assert_allclose(weights[at, 0], share * factor * len(rows), rtol=1e-6)


def test_a_share_of_objects_and_the_rest_background() -> None:
    seen = set()
    made = make("batch_size: 4 fg_fraction: 0.5", tops=6)
    everything = [*REGIONS, *(row[:5] for row in OBJECTS)]
    for _ in range(8):
        regions, labels = tops_of(made)[:2]
        rows = [everything.index(row) for row in regions.tolist()]
        assert (labels[:2] > 0).all() and not labels[2:].any()
        assert len(set(rows)) == 4
        assert set(rows[:2]) <= set(FOREGROUND) and set(rows[2:]) <= set(BACKGROUND)
        seen.add(tuple(rows))
    assert len(seen) > 2


def test_too_few_regions() -> None:
    """First those that are neither object nor background, then others, drawn."""
    size = "img_width: 400 img_height: 300"
    regions, labels = tops_of(make(f"batch_size: 12 fg_fraction: 0.5 {size}", tops=6))[:2]
    everything = [*REGIONS, *(row[:5] for row in OBJECTS)]
    rows = FOREGROUND + BACKGROUND + OTHERS
    np.testing.assert_array_equal(regions[:8], [everything[row] for row in rows])
    assert not labels[4:].any()
    drawn = regions[8:]
    assert len({tuple(row) for row in drawn.tolist()}) == 4
    for image, x1, y1, x2, y2 in drawn:
        assert image in (0, 1) and min(x2 - x1, y2 - y1) >= 31
        assert x1 >= 0 and y1 >= 0 and x1 < 368 and y1 < 268 and x2 < 400 and y2 < 300
        assert all(overlap([image, x1, y1, x2, y2], wanted) < 0.5 for wanted in OBJECTS)
    with pytest.raises(CaffeError, match=r"img_width: more than 32 would be right"):
        make("batch_size: 12")(*given())


def accuracy(bottoms: list[Tensor], tops: int = 2) -> list[float]:
    text = f"type: 'BboxAccuracy' bbox_reg_param {{ {NORM} }}"
    made = make_layer(text, *(tuple(bottom.shape) for bottom in bottoms), tops=tops)
    return [float(top) for top in run(made, *bottoms)]


def test_bbox_accuracy() -> None:
    values = draw(4, 12) * 0.3
    before, after = 0.0, 0.0
    for at in (0, 1):
        region, wanted = REGIONS[at], OBJECTS[at]
        code = values[at, 4 * wanted[5] : 4 * wanted[5] + 4].tolist()
        code = [v * d + m for v, d, m in zip(code, DEVIATION, MEAN, strict=True)]
        corners = []
        for i in (0, 1):
            side = region[i + 3] - region[i + 1] + 1
            middle = region[i + 1] + side / 2 + code[i] * side
            half = side * math.exp(code[i + 2]) / 2
            corners.append((middle - half, middle + half - 1))
        (x1, x2), (y1, y2) = corners
        before += overlap(region, wanted) / 2
        after += overlap([0, x1, y1, x2, y2], wanted) / 2
    np.testing.assert_allclose(accuracy([values, *found()]), [after, before], rtol=1e-6)
    assert accuracy([values, found()[0], torch.zeros(4, 6).double()]) == [-1, -1]


def test_what_does_not_fit() -> None:
    text = "type: 'ProposalTarget' proposal_target_param { cls_num: 2 %s }"
    shapes = (3, 5), (2, 7)
    assert "cls_num: must be positive" in refused("type: 'ProposalTarget'", *shapes, tops=6)
    assert "batch_size: a positive number" in refused(text % "batch_size: -2", *shapes, tops=6)
    assert "fg_thr: must not be below" in refused(text % "fg_thr: 0.4", *shapes, tops=6)
    assert "rows of 7 numbers would" in refused(text % "", (3, 5), (2, 5), tops=6)
    with pytest.raises(CaffeError, match=r"image 1 is out of range; 0 to 0 would be right"):
        make("num_img_per_batch: 1")(*given())
    regions, objects = given()
    objects[0, 5] = 0
    with pytest.raises(CaffeError, match="an object has no class"):
        make("")(regions, objects)
    bad = refused("type: 'BboxAccuracy'", (3, 8), (3, 5), (3, 5))
    assert "R x 4 K, R x 5 and R x 6 would be right, not (3, 8), (3, 5), (3, 5)" in bad
