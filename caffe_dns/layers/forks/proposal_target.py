"""ProposalTarget and BboxAccuracy: training targets for regions, and how well they are met.

These are MS-CNN's. Regions are rows of image and corners in pixels, corners included; axes of
extent 1 may follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns.layers.base import Shape, count, layer_types
from caffe_dns.layers.checks import check_indices, check_positive
from caffe_dns.layers.detection.boxes import decode_by_centres, encode_by_centres, overlaps
from caffe_dns.layers.forks.fields import NormalizedLayer, mean_of
from caffe_dns.layers.forks.roi import rounded

#: The least side of a region that is drawn.
_LEAST_SIDE = 32
#: From so much overlap on, a region is the object itself, and counts for no accuracy.
_THE_SAME = 0.975


def _spans(regions: Tensor) -> Tensor:
    """Rows of x, y, and where the region ends, one pixel beyond its last: for overlaps."""
    return torch.cat([regions[:, 1:3], regions[:, 3:5] + 1], 1)


@dataclass(frozen=True)
class Chosen:
    """Rows of regions: those on objects come first; the object of each, -1 for none."""

    regions: Tensor
    objects: Tensor
    #: With the object; of those on objects only.
    overlap: Tensor
    on_object: Tensor


@layer_types.register("ProposalTarget")
class ProposalTarget(NormalizedLayer):
    """Regions, drawn, with the class and the differences that each should get.

    Bottoms: regions R x 5, and objects G x 7: image, corners, class, and whether it is ignored.
    Tops for `batch_size` regions, or all that count (-1): regions N x 5, classes N x 1,
    differences, their inner and outer weights N x C, the objects N x 6 (class, corners, overlap),
    and perhaps weights of regions N x 1, all with two axes of extent 1. C is 4 for each class, or 8
    without `cls_aware`. Objects are regions, too (`proposal_target_layer.cpp`). No gradient passes
    through.
    """

    bottoms = (2, 2)
    tops = (6, 7)
    no_force_backward = (0, 1)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        self.options = self.param.proposal_target_param
        settings = self.options
        check_positive(self, "proposal_target_param", ("cls_num", "num_img_per_batch"))
        if settings.batch_size < 1 and settings.batch_size != -1:
            raise self.error(
                "a positive number, or -1 for all, would be right",
                "proposal_target_param.batch_size",
            )
        if settings.fg_thr < settings.bg_thr_hg:
            raise self.error("must not be below bg_thr_hg", "proposal_target_param.fg_thr")
        self.groups = settings.cls_num if self.param.bbox_reg_param.cls_aware else 2

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for shape, columns in zip(bottom_shapes, (5, 7), strict=True):
            if not shape or count(shape[1:]) != columns:
                raise self.error(
                    f"rows of {columns} numbers would be right, not {tuple(shape)}", "bottom"
                )
        rows = self.options.batch_size
        if rows == -1:
            rows = max(bottom_shapes[0][0], 1)
        width = 4 * self.groups
        extents = (5, 1, width, width, width, 6, 1)[: self.num_tops]
        return [(rows, extent, 1, 1) for extent in extents]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        regions, objects = (bottom.detach().flatten(1) for bottom in bottoms)
        regions = torch.cat([regions, objects[:, :5]])
        check_indices(self, regions[:, 0].long(), self.options.num_img_per_batch, "image")
        chosen = self._choose(regions, objects)
        matched = objects[chosen.objects.clamp(min=0)]
        labels = matched[:, 5].where(chosen.on_object, 0)
        codes = self._codes(chosen.regions, matched)
        groups = labels.clamp(max=self.groups - 1).long()
        check_indices(self, labels.long(), self.options.cls_num, "class")
        here = torch.arange(self.groups, device=labels.device) == groups[:, None]
        here = here & chosen.on_object[:, None]
        weights = here.to(codes.dtype).repeat_interleave(4, 1)
        targets = (codes.repeat(1, self.groups)).where(weights > 0, 0)
        found = torch.cat([labels[:, None], matched[:, 1:5], chosen.overlap[:, None]], 1)
        found = found.where(chosen.on_object[:, None], 0)
        tops = [chosen.regions, labels[:, None], targets, weights, weights, found]
        if self.num_tops == 7:
            tops.append(self._weights(chosen)[:, None])
        return [top[..., None, None] for top in tops]

    def _choose(self, regions: Tensor, objects: Tensor) -> Chosen:
        overlap, nearest = self._nearest(regions, objects)
        settings = self.options
        on_object = overlap >= settings.fg_thr
        near = nearest.clamp(min=0)
        if (on_object & (objects[near, 5] <= 0)).any():
            raise self.error("an object has no class; a positive number would be right", "bottom")
        background = ~on_object & (overlap >= settings.bg_thr_lw) & (overlap < settings.bg_thr_hg)
        foreground = (on_object & (objects[near, 6] == 0)).nonzero().flatten()
        others = (~on_object & ~background).nonzero().flatten()
        behind = background.nonzero().flatten()
        size, most = settings.batch_size, len(foreground)
        if size == -1:
            size = len(foreground) + len(behind)
        else:
            share = torch.tensor(settings.fg_fraction * size, dtype=torch.float32)
            most = min(most, int(rounded(share)))
        foreground = self._drawn(foreground, most)
        room = size - len(foreground)
        behind = self._drawn(behind, room) if len(behind) > room else torch.cat([behind, others])
        behind = behind[:room]
        rows = torch.cat([foreground, behind])
        more = self._new_regions(size - len(rows), objects)
        if not size:
            raise self.error("no region is left", "bottom")
        number = torch.arange(size, device=regions.device)
        none = nearest.new_full((len(more),), -1)
        return Chosen(
            torch.cat([regions[rows], more]),
            torch.cat([nearest[rows], none]),
            torch.cat([overlap[rows], overlap.new_zeros(len(more))]),
            number < len(foreground),
        )

    def _nearest(self, regions: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
        """The overlap of each region with the object next to it, and which that is; 0 and -1."""
        shares = overlaps(_spans(regions)[:, None], _spans(objects)[None])
        shares = shares.masked_fill(regions[:, :1] != objects[:, 0], -1)
        overlap, nearest = shares.max(1)
        return overlap.clamp(min=0), nearest.where(overlap >= 0, -1)

    def _drawn(self, rows: Tensor, most: int) -> Tensor:
        if len(rows) <= most:
            return rows
        order = torch.randperm(len(rows), generator=self.generator(), device=rows.device)
        return rows[order[:most]]

    def _new_regions(self, count: int, objects: Tensor) -> Tensor:
        """Regions anywhere but on objects, count x 5."""
        found = objects.new_zeros(0, 5)
        if not count:
            return found
        width, height = self.options.img_width, self.options.img_height
        for name, extent in (("img_width", width), ("img_height", height)):
            if extent <= _LEAST_SIDE:
                raise self.error(
                    f"more than {_LEAST_SIDE} would be right, as there are too few regions and "
                    "others are drawn",
                    f"proposal_target_param.{name}",
                )
        while len(found) < count:
            draws = torch.rand((count, 5), generator=self.generator(), device=objects.device)
            draws = draws.to(objects.dtype)
            image = (draws[:, :1] * self.options.num_img_per_batch).floor()
            extents = objects.new_tensor([width, height])
            start = (draws[:, 1:3] * (extents - _LEAST_SIDE)).floor()
            sides = (draws[:, 3:] * (extents - start)).floor().clamp(min=_LEAST_SIDE)
            drawn = torch.cat([image, start, start + sides - 1], 1)
            overlap, nearest = self._nearest(drawn, objects)
            found = torch.cat([found, drawn[(overlap < self.options.fg_thr) | (nearest < 0)]])
        return found[:count]

    def _codes(self, regions: Tensor, objects: Tensor) -> Tensor:
        """The differences of objects from regions, N x 4."""
        return self.normalized(encode_by_centres(_spans(objects), _spans(regions)))

    def _weights(self, chosen: Chosen) -> Tensor:
        """Those of regions: foreground and background count as `fg_fraction` says."""
        on_object, share = chosen.on_object, self.options.fg_fraction
        weights = torch.ones_like(chosen.overlap)
        if self.options.iou_weighted:
            weights = chosen.overlap.where(on_object, weights)
        objects, background = (weights.where(some, 0).sum() for some in (on_object, ~on_object))
        factors = torch.where(on_object, share / objects, (1 - share) / background) * len(weights)
        return torch.where(objects != 0, weights * factors, weights)


@layer_types.register("BboxAccuracy")
class BboxAccuracy(NormalizedLayer):
    """How well corrected regions overlap their objects, and how well they did before.

    Bottoms: differences R x 4 K, regions R x 5 and objects R x 6 as ProposalTarget gives them. Tops
    1 x 1 x 1 x 1, means over the regions on objects that are not these themselves; -1 where there
    are none (`bbox_accuracy_layer.cpp`).
    """

    bottoms = (3, 3)
    tops = (1, 2)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        codes, regions, objects = ((*shape[:1], count(shape[1:])) for shape in bottom_shapes)
        rows = codes[0] if codes else 0
        if not bottom_shapes[0] or codes[1] % 4 or regions != (rows, 5) or objects != (rows, 6):
            raise self.error(
                "R x 4 K, R x 5 and R x 6 would be right, not "
                + ", ".join(str(tuple(shape)) for shape in bottom_shapes),
                "bottom",
            )
        return [(1, 1, 1, 1)] * self.num_tops

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        codes, regions, objects = (bottom.flatten(1) for bottom in bottoms)
        counted = (objects[:, 0] > 0) & (objects[:, 5] <= _THE_SAME)
        labels = objects[:, 0].long().clamp(min=0)
        check_indices(self, labels, codes.shape[1] // 4, "class")
        columns = 4 * labels[:, None] + torch.arange(4, device=labels.device)
        codes = self.denormalized(codes.gather(1, columns))
        before, wanted = _spans(regions), _spans(objects)
        after = decode_by_centres(codes, before)
        tops = [mean_of(overlaps(spans, wanted), counted) for spans in (after, before)]
        return [top.view(1, 1, 1, 1) for top in tops[: self.num_tops]]
