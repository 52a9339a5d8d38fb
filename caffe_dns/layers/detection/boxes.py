"""Boxes as tensors, on any device: codes, overlaps, non-maximum suppression.

The arithmetic of SSD's layers (`bbox_util.cpp`). Boxes are rows of (xmin, ymin, xmax, ymax) in
fractions of the image. Boxes on the host, and in pixels, are in `caffe_dns.data.boxes`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns.proto.caffe_pb2 import PriorBoxParameter


@dataclass(frozen=True)
class BoxCode:
    """How a box is told by its differences from a prior box.

    `kind` is the code_type; the differences are divided by the prior's variances, but for
    `variance_in_target`. All tensors are [..., 4] and broadcast.
    """

    kind: int
    variance_in_target: bool

    def encode(self, boxes: Tensor, priors: Tensor, variances: Tensor) -> Tensor:
        """The differences (`EncodeBBox`)."""
        if self.kind == PriorBoxParameter.CENTER_SIZE:
            code = encode_by_centres(boxes, priors)
        else:
            code = boxes - priors
            if self.kind == PriorBoxParameter.CORNER_SIZE:
                sides = sides_of(priors)
                code = code / torch.cat([sides, sides], -1)
        return code if self.variance_in_target else code / variances

    def decode(self, code: Tensor, priors: Tensor, variances: Tensor) -> Tensor:
        """The boxes (`DecodeBBox`)."""
        if not self.variance_in_target:
            code = code * variances
        if self.kind == PriorBoxParameter.CORNER:
            return priors + code
        if self.kind == PriorBoxParameter.CORNER_SIZE:
            sides = sides_of(priors)
            return priors + code * torch.cat([sides, sides], -1)
        return decode_by_centres(code, priors)


def encode_by_centres(boxes: Tensor, priors: Tensor) -> Tensor:
    """How far centres moved, in sides of the prior boxes, and the logarithms of how sides grew."""
    sides = sides_of(priors)
    shifts = (centres_of(boxes) - centres_of(priors)) / sides
    return torch.cat([shifts, (sides_of(boxes) / sides).log()], -1)


def decode_by_centres(code: Tensor, priors: Tensor) -> Tensor:
    """The inverse of that."""
    sides = sides_of(priors)
    centres = centres_of(priors) + code[..., :2] * sides
    return boxes_around(centres, code[..., 2:].exp() * sides)


def sides_of(boxes: Tensor) -> Tensor:
    """Width and height of each box."""
    return boxes[..., 2:] - boxes[..., :2]


def centres_of(boxes: Tensor) -> Tensor:
    """x and y of the middle of each box."""
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def boxes_around(centres: Tensor, sides: Tensor) -> Tensor:
    """The boxes that have these centres and sides."""
    halves = sides / 2
    return torch.cat([centres - halves, centres + halves], -1)


def areas(boxes: Tensor) -> Tensor:
    """The area of each box; 0 for boxes that end before they begin."""
    return sides_of(boxes).clamp(min=0).prod(-1)


def intersections(first: Tensor, second: Tensor) -> Tensor:
    """What two boxes have in common, an area."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """What two boxes have in common, as a share of what they cover (`JaccardOverlap`)."""
    common = intersections(first, second)
    union = areas(first) + areas(second) - common
    return torch.where(common > 0, common / union, 0)


def suppress(boxes: Tensor, valid: Tensor, threshold: float, eta: float = 1.0) -> Tensor:
    """Which boxes stay of several lists, best first: those that no better one covers.

    `boxes` is [lists, K, 4], `valid` [lists, K] says which take part. A box stays if its overlap
    with each one before it that stayed is at most the threshold; in each list, the threshold is
    multiplied by `eta` after each box that stays, as long as it is above 0.5 (`ApplyNMSFast`).
    """
    stays = torch.zeros_like(valid)
    thresholds = torch.full_like(boxes[:, :1, 0], threshold)
    for index in range(valid.shape[1]):
        covered = overlaps(boxes[:, index : index + 1], boxes[:, :index]) > thresholds
        stays[:, index] = valid[:, index] & ~(covered & stays[:, :index]).any(1)
        if eta < 1:
            lower = stays[:, index : index + 1] & (thresholds > 0.5)
            thresholds = torch.where(lower, thresholds * eta, thresholds)
    return stays


def uncovered(boxes: Tensor, leaves: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The indices of one list, best first, of the boxes that stay: those that no better one covers.

    `leaves` says which of the boxes in its second argument the one in its first does not cover.
    """
    left = torch.arange(len(boxes), device=boxes.device)
    stays = [left[:0]]
    while len(left):
        # A copy: a part would hold on to all that were left each time.
        stays.append(left[:1].clone())
        left = left[1:]
        left = left[leaves(boxes[stays[-1]], boxes[left])]
    return torch.cat(stays)
