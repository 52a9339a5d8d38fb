"""SSD's loss written out box by box, with its gradient, in Python's float64."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.layers.detection.reference import area, decode, encode, overlap, suppress

NONE, IGNORED = -1, -2


@dataclass
class Settings:
    """The fields of a multibox_loss_param that a test sets; the others are the defaults."""

    num_classes: int
    share_location: bool = True
    code_type: str = "CORNER"
    encode_variance_in_target: bool = False
    match_type: str = "PER_PREDICTION"
    overlap_threshold: float = 0.5
    use_prior_for_matching: bool = True
    ignore_cross_boundary_bbox: bool = False
    background_label_id: int = 0
    use_difficult_gt: bool = True
    map_object_to_agnostic: bool = False
    mining_type: str = "MAX_NEGATIVE"
    neg_pos_ratio: float = 3
    neg_overlap: float = 0.5
    objectness_score: float = 0.01
    sample_size: int = 64
    nms: dict[str, Any] = field(default_factory=dict)
    use_prior_for_nms: bool = False
    bp_inside: bool = False
    loc_loss_type: str = "SMOOTH_L1"
    conf_loss_type: str = "SOFTMAX"
    loc_weight: float = 1
    normalization: str = "VALID"

    def text(self) -> str:
        """The layer's definition."""
        lines = []
        for name, value in vars(self).items():
            if name == "normalization":
                continue
            if name == "nms":
                inner = " ".join(f"{key}: {number}" for key, number in value.items())
                lines += [f"nms_param {{ {inner} }}"] if value else []
            else:
                lines.append(f"{name}: {str(value).lower() if value in (True, False) else value}")
        return (
            f"type: 'MultiBoxLoss' loss_param {{ normalization: {self.normalization} }} "
            f"multibox_loss_param {{ {' '.join(lines)} }}"
        )


def matches(
    boxes: list[list[float]], objects: list[list[float]], numbers: list[int], s: Settings
) -> tuple[list[int], list[float]]:
    """The object of each box, out of the objects of these numbers, and the largest overlaps."""
    found, most = [NONE] * len(boxes), [0.0] * len(boxes)
    pairs = {}
    for i, box in enumerate(boxes):
        if s.ignore_cross_boundary_bbox and not all(0 <= value <= 1 for value in box):
            found[i] = IGNORED
            continue
        for j in numbers:
            common = overlap(box, objects[j])
            if common > 1e-6:
                pairs[i, j] = common
                most[i] = max(most[i], common)
    pool = set(numbers)
    while True:
        left = {pair: c for pair, c in pairs.items() if found[pair[0]] == NONE and pair[1] in pool}
        if not left:
            break
        first, chosen = max(sorted(left), key=lambda pair: left[pair])
        found[first] = chosen
        pool.remove(chosen)
    if s.match_type == "PER_PREDICTION":
        for i in range(len(boxes)):
            good = {j: pairs[i, j] for j in numbers if pairs.get((i, j), 0) >= s.overlap_threshold}
            if found[i] == NONE and good:
                found[i] = max(sorted(good), key=lambda j: good[j])
    return found, most


def multibox_loss(
    codes: np.ndarray,
    scores: np.ndarray,
    priors: np.ndarray,
    variances: np.ndarray,
    truth: np.ndarray,
    s: Settings,
    likely: np.ndarray | None = None,
    moves: np.ndarray | None = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """The loss and its gradients; codes are [N, P, L, 4], scores [N, P, C], truth [G, 8].

    RefineDet's `likely` is [N, P, 2], `moves` [N, P, 4].
    """
    images, boxes, box_classes, _ = codes.shape
    used = np.ones_like(variances) if s.encode_variance_in_target else variances
    code_gradient, score_gradient = np.zeros_like(codes), np.zeros_like(scores)
    location_loss = score_loss = 0.0
    count = 0
    #: The prior boxes of each image.
    own = [priors] * images
    if moves is not None:
        own = [
            np.array(
                [decode(s.code_type, move, priors[p], used[p]) for p, move in enumerate(image)]
            )
            for image in moves
        ]

    def decoded(n: int, c: int) -> list[list[float]]:
        return [decode(s.code_type, codes[n, p, c], own[n][p], used[p]) for p in range(boxes)]

    def location(n: int, c: int, p: int, box: list[float], seen: list[float]) -> np.ndarray:
        """The differences of a box's code from what it should be."""
        wanted = encode(s.code_type, box, own[n][p], used[p])
        difference = codes[n, p, c] - np.array(wanted)
        if s.bp_inside:
            difference = np.where((np.array(seen) < 0) | (np.array(seen) > 1), 0, difference)
        return difference / variances[p] if s.encode_variance_in_target else difference

    def cost(difference: np.ndarray) -> tuple[float, np.ndarray]:
        if s.loc_loss_type == "L2":
            return float((difference**2).sum() / 2), difference
        small = np.abs(difference) < 1
        losses = np.where(small, difference**2 / 2, np.abs(difference) - 0.5)
        return float(losses.sum()), np.where(small, difference, np.sign(difference))

    def score_cost(n: int, p: int, labels: list[int]) -> tuple[float, np.ndarray]:
        """For softmax the last label counts, for logistic all of them."""
        row = scores[n, p]
        target = np.zeros(len(row))
        if s.conf_loss_type == "SOFTMAX":
            probabilities = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            target[labels[-1]] = 1
            return -math.log(probabilities[labels[-1]]), probabilities - target
        target[labels] = 1
        sigmoid = 1 / (1 + np.exp(-row))
        losses = target * np.log(sigmoid) + (1 - target) * np.log(1 - sigmoid)
        return -float(losses.sum()), sigmoid - target

    for n in range(images):
        rows = [row for row in truth if row[0] == n and (s.use_difficult_gt or not row[7])]
        objects = [row[3:7].tolist() for row in rows]
        labels = [
            1 + s.background_label_id if s.map_object_to_agnostic else int(row[1]) for row in rows
        ]
        found: dict[int, list[int]] = {}
        most: list[float] = [0.0] * boxes
        everything = list(range(len(objects)))
        by_class = box_classes > 1
        seen = {
            c: own[n].tolist() if s.use_prior_for_matching else decoded(n, c)
            for c in range(box_classes)
        }
        if s.use_prior_for_matching:
            all_found, most = matches(seen[0], objects, everything, s)
            for c in range(box_classes):
                mine = [j if j < 0 or not by_class or labels[j] == c else NONE for j in all_found]
                found[c] = mine
        else:
            for c in range(box_classes):
                some = [j for j in everything if not by_class or labels[j] == c]
                found[c], most = matches(seen[c], objects, some, s)
        negatives: list[int] = []
        if s.mining_type != "NONE":
            if not objects:
                continue
            losses = []
            for p in range(boxes):
                j = found[0][p]
                total = score_cost(n, p, [labels[j] if j >= 0 else s.background_label_id])[0]
                if s.mining_type == "HARD_EXAMPLE" and j >= 0:
                    total += cost(location(n, 0, p, objects[j], seen[0][p]))[0]
                losses.append(total)
            if s.mining_type == "MAX_NEGATIVE":
                eligible = [
                    p
                    for p in range(boxes)
                    if found[0][p] == NONE
                    and most[p] < s.neg_overlap
                    and (likely is None or likely[n, p, 1] >= s.objectness_score)
                ]
                wanted = int(sum(j >= 0 for j in found[0]) * s.neg_pos_ratio)
            else:
                eligible, wanted = list(range(boxes)), s.sample_size
            ranked = sorted(eligible, key=lambda p: -losses[p])
            if s.nms:
                shapes = priors.tolist() if s.use_prior_for_nms else decoded(n, 0)
                ranked = ranked[: s.nms["top_k"]] if "top_k" in s.nms else ranked
                ranked = [p for p in ranked if area(shapes[p]) >= 1e-5]
                order = suppress(
                    [shapes[p] for p in ranked],
                    list(range(len(ranked), 0, -1)),
                    s.nms["nms_threshold"],
                )
                ranked = [ranked[i] for i in order]
            selected = set(ranked[:wanted])
            negatives = [p for p in selected if found[0][p] == NONE]
            if s.mining_type == "HARD_EXAMPLE":
                found[0] = [j if j < 0 or p in selected else NONE for p, j in enumerate(found[0])]
        for c, its in found.items():
            for p, j in enumerate(its):
                if j >= 0:
                    value, gradient = cost(location(n, c, p, objects[j], seen[c][p]))
                    location_loss += value
                    scale = variances[p] if s.encode_variance_in_target else 1
                    code_gradient[n, p, c] += s.loc_weight * gradient / scale
                    count += 1
        for p in range(boxes):
            given = [labels[its[p]] for its in found.values() if its[p] >= 0]
            if s.mining_type == "NONE":
                nothing = [s.background_label_id] if s.conf_loss_type == "SOFTMAX" else []
                given = given or nothing
            elif not given:
                if p not in negatives:
                    continue
                given = [s.background_label_id]
            value, gradient = score_cost(n, p, given)
            score_loss += value
            score_gradient[n, p] += gradient
    divisor = max(
        1,
        {"VALID": count, "FULL": images * boxes, "BATCH_SIZE": images, "NONE": 1}[s.normalization],
    )
    total = (s.loc_weight * location_loss + score_loss) / divisor
    return total, code_gradient / divisor, score_gradient / divisor
