"""Regions that a net proposes, and their correction: BoxOutput and DecodeBBox (MS-CNN)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import Shape, count, layer_types
from caffe_dns.layers.checks import check_positive
from caffe_dns.layers.detection.boxes import intersections, uncovered
from caffe_dns.layers.forks.fields import Field, NormalizedLayer
from caffe_dns.proto.caffe_pb2 import TRAIN

#: What an overlap is a share of: the union, the smaller of both boxes, the better one.
_NMS_TYPES = ("IOU", "IOMU", "IOFU")
#: The region where none is found.
_NO_REGION = (0.0, 1.0, 1.0, 10.0, 10.0)


@layer_types.register("BoxOutput")
class BoxOutput(NormalizedLayer):
    """The regions of each image that are left of those of all scales (`box_output_layer.cpp`).

    Bottoms N x (classes + 4) x H x W, one for each scale: scores, the background's first, and the
    box of each cell, whose sides are near `field_w` and `field_h` pixels. Tops: R x 5 x 1 x 1 with
    the image and the corners in pixels, and the same with the score, R x 6 x 1 x 1; the best of
    each image first. How many there are is known only in the forward pass; `reshape` says one. No
    gradient passes through.
    """

    bottoms = (1, None)
    tops = (1, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes)
        self.options = self.param.box_output_param
        for name in ("field_h", "field_w", "downsample_rate"):
            if len(getattr(self.options, name)) != len(bottom_shapes):
                raise self.error("needs a value for each bottom", f"box_output_param.{name}")
        if self.options.nms_type not in _NMS_TYPES:
            raise self.error(
                f"is '{self.options.nms_type}'; known: {', '.join(_NMS_TYPES)}",
                "box_output_param.nms_type",
            )
        check_positive(self, "box_output_param", ("field_whr", "field_xyr"))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        first = bottom_shapes[0]
        for shape in bottom_shapes:
            if len(shape) != 4 or shape[:2] != first[:2] or shape[1] < 6:
                raise self.error(
                    f"bottoms of N x (classes + 4) x H x W would be right, not {tuple(shape)}",
                    "bottom",
                )
        tops: list[Shape] = [(1, 5, 1, 1), (1, 6, 1, 1)]
        return tops[: self.num_tops]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        scales = [self._boxes(bottom, index) for index, bottom in enumerate(bottoms)]
        found = []
        for image in range(len(bottoms[0])):
            boxes = torch.cat([self._chosen(scale[image]) for scale in scales])
            # Of equal scores, the last one comes first.
            boxes = boxes.flip(0)
            boxes = boxes[boxes[:, 4].argsort(descending=True, stable=True)]
            if self.options.max_nms_num:
                boxes = boxes[: self.options.max_nms_num]
            boxes = boxes[uncovered(boxes, self._leaves)]
            if self.options.max_post_nms_num:
                boxes = boxes[: self.options.max_post_nms_num]
            number = boxes.new_full((len(boxes), 1), image)
            found.append(torch.cat([number, _corners(boxes), boxes[:, 4:]], 1))
        rows = torch.cat(found)
        regions = rows[:, :5]
        if not len(rows):
            regions, rows = rows.new_tensor([_NO_REGION]), rows.new_zeros(1, 6)
        return [top[..., None, None] for top in (regions, rows)][: self.num_tops]

    def _boxes(self, bottom: Tensor, index: int) -> Tensor:
        """x, y, width, height and score of each cell's box, N x (H * W) x 5."""
        options = self.options
        height, width = bottom.shape[2:]
        values = bottom.flatten(2).transpose(1, 2)
        scores = values[..., 1:-4].amax(-1) - values[..., 0]
        codes = self.denormalized(values[..., -4:])
        field = Field(
            options.field_w[index], options.field_h[index], options.downsample_rate[index]
        )
        middle, sides = field.decode(
            codes, width, 1 / options.field_xyr, math.log(options.field_whr)
        )
        corner = (middle - sides / 2).clamp(min=0)
        image = codes.new_tensor([width * field.rate, height * field.rate])
        sides = torch.minimum(sides, image - corner)
        return torch.cat([corner, sides, scores.unsqueeze(-1)], -1)

    def _chosen(self, boxes: Tensor) -> Tensor:
        large = (boxes[:, 2:4] >= self.options.min_size).all(1)
        return boxes[large & (boxes[:, 4] >= self.options.fg_thr)]

    def _leaves(self, box: Tensor, others: Tensor) -> Tensor:
        return self._overlaps(box, others) <= self.options.iou_thr

    def _overlaps(self, box: Tensor, others: Tensor) -> Tensor:
        common = intersections(_corners(box), _corners(others))
        own, theirs = box[:, 2:4].prod(1), others[:, 2:4].prod(1)
        whole = {
            "IOU": own + theirs - common,
            "IOMU": torch.minimum(own, theirs),
            "IOFU": own.expand_as(theirs),
        }[self.options.nms_type]
        return torch.where(common > 0, common / whole, 0)


def _corners(boxes: Tensor) -> Tensor:
    """The corners of rows of x, y, width and height."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:4]], 1)


@layer_types.register("DecodeBBox")
class DecodeBBox(NormalizedLayer):
    """Regions, corrected by what a net says of their boxes (`decode_bbox_layer.cpp`).

    Bottoms: differences R x 8 (x 1 x 1), of which the second four count, and regions R x 5
    (x 1 x 1) of image and corners; while training, a third, whose last column is the overlap with
    what was to be found: regions with `gt_iou_thr` or more are left out then, and boxes that end
    before they begin. Top: the regions left. No gradient passes through.
    """

    bottoms = (2, 3)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        codes, regions = bottom_shapes[:2]
        if not codes or count(codes[1:]) != 8 or not regions or count(regions[1:]) != 5:
            raise self.error(
                f"R x 8 and R x 5 would be right, not {tuple(codes)} and {tuple(regions)}", "bottom"
            )
        if any(shape[:1] != codes[:1] for shape in bottom_shapes):
            raise self.error("the bottoms differ in their first axis", "bottom")
        if any(len(shape) < 2 or not count(shape[1:]) for shape in bottom_shapes[2:]):
            raise self.error(f"R x 1 would be right, not {tuple(bottom_shapes[2])}", "bottom")
        if len(bottom_shapes) == 3 and self.param.phase != TRAIN:
            raise self.error("a third bottom is for training only", "bottom")
        return [tuple(regions)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        regions = bottoms[1].flatten(1)
        codes = self.denormalized(bottoms[0].flatten(1)[:, 4:])
        sides = regions[:, 3:] - regions[:, 1:3] + 1
        middle = codes[:, :2] * sides + (regions[:, 1:3] + regions[:, 3:]) / 2
        sides = sides * codes[:, 2:].exp()
        corner = middle - (sides - 1) / 2
        found = torch.cat([regions[:, :1], corner, corner + sides - 1], 1)
        if self.training:
            stays = (found[:, 1:3] <= found[:, 3:]).all(1)
            if len(bottoms) == 3:
                limit = self.param.decode_bbox_param.gt_iou_thr
                stays = stays & (bottoms[2].flatten(1)[:, -1] < limit)
            found = found[stays]
            if not len(found):
                raise self.error("no region is left", "bottom")
        return found.view(-1, *bottoms[1].shape[1:])
