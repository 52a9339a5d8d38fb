"""BoxOutput and DecodeBBox against their rules, box by box, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from tests.layers.harness import draw, make_layer, refused

IMAGES, CLASSES = 2, 3
FIELDS = [(20, 30, 8), (40, 24, 16)]  # width, height, pixels of a cell
SIZES = [(5, 6), (3, 4)]
MEAN, DEVIATION = [0.1, -0.1, 0.0, 0.2], [0.5, 0.25, 0.4, 0.3]

Box = tuple[float, ...]


def overlap(better: Box, other: Box, kind: str) -> float:
    spans = [
        min(better[i] + better[i + 2], other[i] + other[i + 2]) - max(better[i], other[i])
        for i in (0, 1)
    ]
    if min(spans) <= 0:
        return 0.0
    common = spans[0] * spans[1]
    areas = better[2] * better[3], other[2] * other[3]
    whole = {"IOU": sum(areas) - common, "IOMU": min(areas), "IOFU": areas[0]}[kind]
    return common / whole


def clamped(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


def boxes_of(bottom: torch.Tensor, scale: int, normalized: bool) -> list[Box]:
    """x, y, width, height and score of the cells of one image that suffice."""
    width, height, rate = FIELDS[scale]
    found: list[Box] = []
    for y in range(bottom.shape[1]):
        for x in range(bottom.shape[2]):
            *scores, a, b, c, d = bottom[:, y, x].tolist()
            if normalized:
                pairs = zip((a, b, c, d), DEVIATION, MEAN, strict=True)
                a, b, c, d = (v * float(np.float32(s)) + float(np.float32(m)) for v, s, m in pairs)
            score = max(scores[1:]) - scores[0]
            w = width * math.exp(clamped(c, math.log(2)))
            h = height * math.exp(clamped(d, math.log(2)))
            left = max(clamped(a, 0.5) * width + (x + 0.5) * rate - w / 2, 0)
            top = max(clamped(b, 0.5) * height + (y + 0.5) * rate - h / 2, 0)
            w = min(w, bottom.shape[2] * rate - left)
            h = min(h, bottom.shape[1] * rate - top)
            if score >= -0.5 and min(w, h) >= 15:
                found.append((left, top, w, h, score))
    return found


@pytest.mark.parametrize("kind", ["IOU", "IOMU", "IOFU"])
@pytest.mark.parametrize("normalized", [False, True])
def test_box_output(kind: str, normalized: bool) -> None:
    bottoms = [draw(IMAGES, CLASSES + 4, *size, seed=i) for i, size in enumerate(SIZES)]
    fields = " ".join(f"field_w: {w} field_h: {h} downsample_rate: {rate}" for w, h, rate in FIELDS)
    text = (
        f"type: 'BoxOutput' top: 'a' top: 'b' box_output_param {{ fg_thr: -0.5 iou_thr: 0.4 "
        f"nms_type: '{kind}' {fields} max_nms_num: 12 max_post_nms_num: 6 }}"
    )
    if normalized:
        text += f" bbox_reg_param {{ bbox_mean: {MEAN} bbox_std: {DEVIATION} }}"
    regions, rows = make_layer(text, *(tuple(bottom.shape) for bottom in bottoms))(*bottoms)
    expected: list[Box] = []
    for image in range(IMAGES):
        candidates = [
            box
            for scale, bottom in enumerate(bottoms)
            for box in boxes_of(bottom[image], scale, normalized)
        ]
        assert len(candidates) > 12
        kept: list[Box] = []
        for box in sorted(candidates, key=lambda box: -box[4])[:12]:
            if all(overlap(better, box, kind) <= 0.4 for better in kept):
                kept.append(box)
        for x, y, w, h, score in kept[:6]:
            expected.append((image, x, y, x + w, y + h, score))
    assert rows.shape == (len(expected), 6, 1, 1)
    np.testing.assert_allclose(rows.flatten(1), expected, rtol=1e-6)
    assert torch.equal(regions, rows[:, :5])


def test_equal_scores_and_none() -> None:
    text = (
        "type: 'BoxOutput' top: 'a' top: 'b' box_output_param { field_w: 20 field_h: 20 "
        "downsample_rate: 40 fg_thr: %s }"
    )
    bottom = torch.zeros(1, 6, 1, 2, dtype=torch.float64)
    _, rows = make_layer(text % 0, (1, 6, 1, 2))(bottom)
    assert rows.flatten(1).tolist() == [[0, 50, 10, 70, 30, 0], [0, 10, 10, 30, 30, 0]]
    regions, rows = make_layer(text % 1, (1, 6, 1, 2))(bottom)
    assert regions.flatten().tolist() == [0, 1, 1, 10, 10]
    assert rows.flatten().tolist() == [0] * 6


def decoded(codes: list[float], region: list[float]) -> list[float]:
    image, x1, y1, x2, y2 = region
    a, b, c, d = (v * s + m for v, s, m in zip(codes[4:], DEVIATION, MEAN, strict=True))
    w, h = x2 - x1 + 1, y2 - y1 + 1
    x, y = a * w + (x1 + x2) / 2, b * h + (y1 + y2) / 2
    w, h = w * math.exp(c), h * math.exp(d)
    x, y = x - (w - 1) / 2, y - (h - 1) / 2
    return [image, x, y, x + w - 1, y + h - 1]


def test_decode_bbox() -> None:
    text = f"type: 'DecodeBBox' bbox_reg_param {{ bbox_mean: {MEAN} bbox_std: {DEVIATION} }}"
    codes = draw(4, 8)
    regions = torch.tensor(
        [[0, 2, 3, 30, 40], [0, 5, 5, 5, 5], [1, 0, 0, 10, 80], [1, 9, 9, 2, 2.0]],
        dtype=torch.float64,
    )
    expected = [decoded(c, r) for c, r in zip(codes.tolist(), regions.tolist(), strict=True)]
    made = make_layer(text, (4, 8), (4, 5))
    np.testing.assert_allclose(made(codes, regions), expected, rtol=1e-6)
    # While training, without the box that ends before it begins and the one that is found already.
    overlaps = torch.tensor([[0.5], [0.2], [0.97], [0.1]], dtype=torch.float64)
    train = make_layer(text + " phase: TRAIN", (4, 8), (4, 5), (4, 1))
    np.testing.assert_allclose(train(codes, regions, overlaps), expected[:2], rtol=1e-6)
    with pytest.raises(CaffeError, match="no region is left"):
        train(codes, regions, torch.ones(4, 1))


def test_what_does_not_fit() -> None:
    box = "type: 'BoxOutput' box_output_param { %s }"
    fields = "field_w: 2 field_h: 2 downsample_rate: 2"
    assert "field_h: needs a value for each bottom" in refused(box % "", (1, 6, 2, 2))
    assert "nms_type: is 'X'; known: IOU" in refused(box % f"{fields} nms_type: 'X'", (1, 6, 2, 2))
    assert "field_whr: must be positive" in refused(box % f"{fields} field_whr: 0", (1, 6, 2, 2))
    assert "N x (classes + 4) x H x W would" in refused(box % fields, (1, 5, 2, 2))
    norm = f"{box % fields} bbox_reg_param {{ bbox_mean: 1 bbox_std: 1 }}"
    assert "4 means and 4 deviations" in refused(norm, (1, 6, 2, 2))
    assert "R x 8 and R x 5 would be right" in refused("type: 'DecodeBBox'", (3, 4), (3, 5))
    assert "differ in their first axis" in refused("type: 'DecodeBBox'", (3, 8), (2, 5))
    for third in ((3,), (3, 0)):
        message = refused("type: 'DecodeBBox' phase: TRAIN", (3, 8), (3, 5), third)
        assert f"R x 1 would be right, not {third}" in message
    shapes = (3, 8), (3, 5), (3, 1)
    assert "is for training only" in refused("type: 'DecodeBBox' phase: TEST", *shapes)
