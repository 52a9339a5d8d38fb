"""Proposal against its rules, box by box, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.layers.harness import draw, make_layer, refused

RATIOS, SCALES = [0.5, 1.0, 2.0], [2.0, 4.0]
ANCHORS, HEIGHT, WIDTH, STRIDE, BASE = 6, 4, 5, 8, 16
TEXT = (
    f"type: 'Proposal' proposal_param {{ ratio: {RATIOS} scale: {SCALES} feat_stride: {STRIDE} "
    f"base_size: {BASE} min_size: 9 pre_nms_topn: 60 post_nms_topn: 8 nms_thresh: 0.6 }}"
)
SHAPES = (1, 12, HEIGHT, WIDTH), (1, 24, HEIGHT, WIDTH)

Box = tuple[float, ...]


def boxes_of(scores: np.ndarray, codes: np.ndarray, image: list[float]) -> list[Box]:
    rows, columns, factors = image[0], image[1], (image[:4][-1], image[2])
    found: list[Box] = []
    for y in range(HEIGHT):
        for x in range(WIDTH):
            anchor = 0
            for ratio in RATIOS:
                w0 = math.floor(math.sqrt(BASE * BASE / ratio) + 0.5)
                h0 = math.floor(w0 * ratio + 0.5)
                for scale in SCALES:
                    w, h = w0 * scale, h0 * scale
                    a, b, c, d = codes[0, 4 * anchor : 4 * anchor + 4, y, x]
                    # The middle lies half a pixel after that of the corners.
                    mx = x * STRIDE + (BASE - 1) / 2 + 0.5 + a * w
                    my = y * STRIDE + (BASE - 1) / 2 + 0.5 + b * h
                    w, h = w * math.exp(c) / 2, h * math.exp(d) / 2
                    ends = [(mx - w, columns), (my - h, rows), (mx + w, columns), (my + h, rows)]
                    x1, y1, x2, y2 = (max(0.0, min(v, side - 1)) for v, side in ends)
                    large = x2 - x1 + 1 >= 9 * factors[0] and y2 - y1 + 1 >= 9 * factors[1]
                    found.append((x1, y1, x2, y2, scores[0, ANCHORS + anchor, y, x] * large))
                    anchor += 1
    return found


def overlap(first: Box, second: Box) -> float:
    w = min(first[2], second[2]) - max(first[0], second[0])
    h = min(first[3], second[3]) - max(first[1], second[1])
    if min(w, h) < 0:
        return 0.0
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (first, second)]
    common = (w + 1) * (h + 1)
    return common / (sum(areas) - common)


@pytest.mark.parametrize(
    "image", [[30.0, 44.0, 1.5, 2.0], [30.0, 44.0, 1.5, 2.0, 9.0, 9.0], [30.0, 44.0, 1.5]]
)
def test_proposal(image: list[float]) -> None:
    scores, codes = draw(*SHAPES[0]).sigmoid(), 0.3 * draw(*SHAPES[1], seed=1)
    made = make_layer(TEXT, *SHAPES, (1, len(image)), tops=2)
    regions, best = made(scores, codes, torch.tensor([image], dtype=torch.float64))
    candidates = sorted(boxes_of(scores.numpy(), codes.numpy(), image), key=lambda box: -box[4])
    assert any(box[4] == 0 for box in candidates)
    kept: list[Box] = []
    for box in candidates[:60]:
        if all(overlap(better, box) <= 0.6 for better in kept):
            kept.append(box)
    assert len(kept) > 8
    expected = [(0, *box) for box in kept[:8]]
    rows = torch.cat([regions, best[:, None]], 1)
    np.testing.assert_allclose(rows, expected, rtol=1e-6, atol=1e-6)


def test_what_does_not_fit() -> None:
    image = (1, 3)
    text = "type: 'Proposal' proposal_param { %s }"
    assert "ratio: needs positive values" in refused(text % "scale: 1", *SHAPES, image)
    both = text % "ratio: 1 scale: 1 %s"
    assert "base_size: must be pos" in refused(both % "base_size: 0", (1, 2, 1, 1), *SHAPES)
    both = both % ""
    assert "1 x 2 x H x W would be right" in refused(both, (2, 2, 1, 1), (2, 4, 1, 1), image)
    assert "(1, 4, 3, 3) would be" in refused(both, (1, 2, 3, 3), (1, 4, 1, 3), image)
    assert "at least 3 numbers" in refused(both, (1, 2, 3, 3), (1, 4, 3, 3), (1, 2))
