"""The objects in a batch of images, and which boxes they are matched with."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

#: Overlaps up to this are none.
LEAST_OVERLAP = 1e-6


@dataclass(frozen=True)
class GroundTruth:
    """G objects: the number of the image, label and box [G, 4] of each, and whether it counts."""

    image: Tensor
    label: Tensor
    boxes: Tensor
    counts: Tensor

    @staticmethod
    def read(bottom: Tensor, images: int, *, difficult: bool) -> GroundTruth:
        """The rows of a label blob, 1 x 1 x G x 8 (`GetGroundTruth`).

        A row holds the image's number (-1 for no object), label, number of the object, the box, and
        whether it is difficult; without `difficult`, those do not count.
        """
        rows = bottom.detach().reshape(-1, 8)
        if not len(rows):
            rows = rows.new_full((1, 8), -1)
        image, label = rows[:, 0].long(), rows[:, 1].long()
        counts = (image >= 0) & (image < images)
        if not difficult:
            counts = counts & (rows[:, 7] == 0)
        return GroundTruth(image.clamp(0, images - 1), label, rows[:, 3:7], counts)

    def has_objects(self, images: int) -> Tensor:
        """Whether each image has an object, [N, 1]."""
        numbers = torch.arange(images, device=self.image.device)[:, None]
        return ((self.image == numbers) & self.counts).any(1, keepdim=True)


def match(
    overlap: Tensor, group: Tensor, ignored: Tensor, per_prediction: float | None
) -> tuple[Tensor, Tensor]:
    """Match objects with boxes, each group of objects with the boxes of its own (`MatchBBox`).

    `overlap` is [G, P], 0 for objects that do not count; `group` [G] says whose each object is;
    `ignored` [groups, P] are boxes that match nothing. First each object gets the box that it
    overlaps most, the best pair first, then, if there is a threshold `per_prediction`, each box
    that is left the object that it overlaps most, by that much at least.

    Returns, both [groups, P], the number of the object, -1 for none, and the largest overlap with
    any object of the group. Asks the device how many objects the largest group has.
    """
    groups, boxes = ignored.shape
    overlap = overlap.where((overlap > LEAST_OVERLAP) & ~ignored[group], 0)
    wide = group[:, None].expand_as(overlap)
    most = overlap.new_zeros(groups, boxes).scatter_reduce(0, wide, overlap, "amax")
    matched = _bipartite(overlap, group, groups)
    if per_prediction is not None:
        numbers = torch.arange(len(group), device=group.device)[:, None].expand_as(overlap)
        none = torch.full_like(matched, len(group))
        best = numbers.where((overlap > 0) & (overlap == most[group]), len(group))
        best = none.scatter_reduce(0, wide, best, "amin")
        free = (matched < 0) & (best < len(group)) & (most >= per_prediction)
        matched = torch.where(free, best, matched)
    return matched, most


def _bipartite(overlap: Tensor, group: Tensor, groups: int) -> Tensor:
    """For each group the object of each box [groups, P], -1 for none: the best pair, then the next.

    Of equal pairs, the one with the first box, then the first object. The groups that have objects
    take their turns together, as often as the largest has objects.
    """
    objects, boxes = overlap.shape
    present, owner = group.unique(return_inverse=True)
    rank = (owner[:, None] == owner).tril(-1).sum(1)
    most, every = int(rank.max()) + 1, torch.arange(len(present), device=group.device)
    left = overlap.new_zeros(len(present), boxes, most)
    left[owner, :, rank] = overlap
    number = torch.full((len(present), most), -1, device=group.device)
    number[owner, rank] = torch.arange(objects, device=group.device)
    matched = torch.full((len(present), boxes), -1, device=group.device)
    for _ in range(most):
        pair = left.flatten(1).argmax(1)
        box, chosen = pair // most, pair % most
        found = left[every, box, chosen] > 0
        matched[every, box] = torch.where(found, number[every, chosen], matched[every, box])
        left[every, :, chosen] = 0
        left[every, box] = 0
    return torch.full((groups, boxes), -1, device=group.device).index_copy_(0, present, matched)
