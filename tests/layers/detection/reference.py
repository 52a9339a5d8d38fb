"""SSD's arithmetic on boxes written out, box by box, in Python's float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = Sequence[float]


def area(box: Box) -> float:
    return max(box[2] - box[0], 0) * max(box[3] - box[1], 0)


def overlap(first: Box, second: Box) -> float:
    low = [max(first[0], second[0]), max(first[1], second[1])]
    high = [min(first[2], second[2]), min(first[3], second[3])]
    common = max(high[0] - low[0], 0) * max(high[1] - low[1], 0)
    return common / (area(first) + area(second) - common) if common else 0.0


def centre_size(box: Box) -> tuple[float, float, float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]


def encode(kind: str, box: Box, prior: Box, variance: Box) -> list[float]:
    """The differences of a box from its prior box, divided by the variances."""
    x, y, width, height = centre_size(prior)
    if kind == "CORNER":
        code = [box[i] - prior[i] for i in range(4)]
    elif kind == "CORNER_SIZE":
        code = [(box[i] - prior[i]) / (width, height)[i % 2] for i in range(4)]
    else:
        box_x, box_y, box_width, box_height = centre_size(box)
        code = [(box_x - x) / width, (box_y - y) / height]
        code += [math.log(box_width / width), math.log(box_height / height)]
    return [code[i] / variance[i] for i in range(4)]


def decode(kind: str, code: Box, prior: Box, variance: Box) -> list[float]:
    """The box that differs from its prior box like this."""
    code = [code[i] * variance[i] for i in range(4)]
    x, y, width, height = centre_size(prior)
    if kind == "CORNER":
        return [prior[i] + code[i] for i in range(4)]
    if kind == "CORNER_SIZE":
        return [prior[i] + code[i] * (width, height)[i % 2] for i in range(4)]
    x, y = x + code[0] * width, y + code[1] * height
    width, height = math.exp(code[2]) * width, math.exp(code[3]) * height
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def suppress(
    boxes: Sequence[Box],
    scores: Sequence[float],
    threshold: float,
    *,
    least: float = -math.inf,
    top_k: int = -1,
    eta: float = 1,
) -> list[int]:
    """The numbers of the boxes that stay, best first."""
    ranked = [i for i in sorted(range(len(boxes)), key=lambda i: -scores[i]) if scores[i] > least]
    kept: list[int] = []
    for i in ranked[:top_k] if top_k > -1 else ranked:
        if all(overlap(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
            if eta < 1 and threshold > 0.5:
                threshold *= eta
    return kept
