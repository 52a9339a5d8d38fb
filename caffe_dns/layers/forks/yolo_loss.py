"""Yolov3: the loss of YOLO 3 (MobileNet-YOLO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns.layers.base import FIRST_BOTTOM, LossLayer, Shape, count, layer_types
from caffe_dns.layers.checks import check_indices, check_positive
from caffe_dns.layers.detection.boxes import boxes_around, overlaps
from caffe_dns.layers.forks.yolo import cells_of, corners_of
from caffe_dns.layers.forks.yolo_regions import around, listed, with_gradient
from caffe_dns.proto.caffe_pb2 import Yolov3Parameter

_FIELD = "yolov3_param"
#: Values of a box before its classes, and numbers of an object: class, centre and sides.
_BOX, _OBJECT = 5, 5


@dataclass(frozen=True)
class _Matches:
    """Boxes that objects belong to: image, row, column and box of each, and the object's number."""

    places: tuple[Tensor, Tensor, Tensor, Tensor]
    objects: Tensor


@layer_types.register("Yolov3")
class Yolov3(LossLayer):
    """The loss of YOLO 3's boxes in cells of one size (`yolov3_layer.cpp` of MobileNet-YOLO).

    Bottoms: N x (num * (5 + classes)) x H x W, and N x 1 x M x 5, objects as AnnotatedData gives
    them with `yolo_data_type: 1`. An object gets the box of its cell whose anchor is most like it,
    if `mask` has that, and those whose anchors are more like it than `iou_thresh`. They get its
    place, sides and class; the others no object, unless they overlap one by more than `thresh`. The
    loss is the sum of the squares of what the fork sends back, over N, not the integral of that.
    """

    needs_numbers = FIRST_BOTTOM

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = self.param.yolov3_param
        check_positive(self, _FIELD, ("num_class", "num", "anchors_scale"))
        pairs, mask = list(self.options.biases), list(self.options.mask)
        if not pairs or len(pairs) % 2 or min(pairs) <= 0:
            what = f"has {len(pairs)} values; pairs of a width and a height above 0 would be right"
            raise self.error(what, f"{_FIELD}.biases")
        if len(mask) < self.options.num or 2 * max(mask) >= len(pairs):
            raise self.error(
                f"is {mask}; the number, below {len(pairs) // 2}, of an anchor for each of "
                f"{self.options.num} boxes would be right",
                f"{_FIELD}.mask",
            )
        if self.options.iou_loss != Yolov3Parameter.MSE:
            raise self.error("is not supported; MSE would do", f"{_FIELD}.iou_loss")
        if self.options.use_focal_loss:
            raise self.error("is not supported; false would do", f"{_FIELD}.use_focal_loss")
        #: Which anchors the boxes of a cell have, and where each anchor is among those, or -1.
        self.mask = mask[: self.options.num]
        places = {anchor: place for place, anchor in reversed(list(enumerate(self.mask)))}
        self.place_of = [places.get(anchor, -1) for anchor in range(len(pairs) // 2)]

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape, objects = map(tuple, bottom_shapes)
        channels = self.options.num * (_BOX + self.options.num_class)
        if len(shape) != 4 or shape[1] != channels:
            what = f"bottom 0 is {shape}; N x {channels} x H x W would be right"
            raise self.error(what, "bottom")
        if not objects or objects[-1] != _OBJECT or count(objects[:1]) != shape[0]:
            raise self.error(
                f"bottom 1 is {objects}; {shape[0]} x 1 x objects x {_OBJECT}, as AnnotatedData "
                "gives them with yolo_data_type: 1, would be right",
                "bottom",
            )
        return [()]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom = bottoms[0]
        with torch.no_grad():
            cells = cells_of(bottom.detach(), self.options.num)
            rows = bottoms[1].detach().reshape(len(bottom), -1, _OBJECT)
            found, slopes = self._differences(cells, rows.to(bottom.dtype))
            loss = found.square().sum() / len(bottom)
            sent = (found * slopes / len(bottom)).permute(0, 3, 4, 1, 2).reshape(bottom.shape)
        return with_gradient(bottom, loss, sent)

    def _differences(self, cells: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What the squares are of, N x H x W x num x values, and what it is sent back times."""
        shares = cells.sigmoid()
        shares[..., 2:4] = cells[..., 2:4]
        found = torch.zeros_like(cells)
        found[..., 4] = shares[..., 4].masked_fill(self._near(cells, rows), 0)
        matches = self._matches(cells, rows)
        if len(matches.objects):
            self._put(found, shares, rows, matches)
        slopes = torch.ones_like(cells)
        if self.options.use_logic_gradient:
            slopes = shares * (1 - shares)
            slopes[..., 2:4] = 1
        return found, slopes

    def _anchors(self, cells: Tensor) -> Tensor:
        """Widths and heights [anchors, 2] in shares of the image."""
        pixels = cells.new_tensor(list(self.options.biases)).view(-1, 2)
        extents = cells.new_tensor([cells.shape[2], cells.shape[1]])
        return pixels / (extents * self.options.anchors_scale)

    def _near(self, cells: Tensor, rows: Tensor) -> Tensor:
        """Whether each box overlaps an object of its image by more than `thresh`."""
        own = self._anchors(cells)[self.mask]
        boxes = corners_of(cells[..., :2], cells[..., 2:4], own)
        objects = boxes_around(rows[..., 1:3], rows[..., 3:5])[:, None, None, None]
        shares = overlaps(boxes.unsqueeze(-2), objects)
        # The list of an image ends where there is no place.
        there = (rows[..., 1] != 0).cumprod(1).bool()[:, None, None, None]
        return (shares.masked_fill(~there, 0) > self.options.thresh).any(-1)

    def _matches(self, cells: Tensor, rows: Tensor) -> _Matches:
        """The boxes of objects, in the order of the objects."""
        images, numbers = listed(rows)
        objects = rows[images, numbers]
        anchors = self._anchors(cells)
        likeness = overlaps(around(objects[:, 3:])[:, None], around(anchors))
        most, best = likeness.max(1)
        place_of = torch.tensor(self.place_of, device=cells.device)
        # What is left out among the others is the anchor by the number of the box, as there.
        place = place_of[best]
        but = torch.where(place >= 0, place, best)
        each = torch.arange(len(anchors), device=cells.device)
        taken = (likeness > self.options.iou_thresh) & (each != but[:, None])
        if self.options.iou_thresh >= 1:
            taken = torch.zeros_like(taken)
        taken[torch.arange(len(best), device=cells.device), best] = most > 0
        which, anchor = (taken & (place_of >= 0)).nonzero().unbind(1)
        extents = cells.new_tensor([cells.shape[2], cells.shape[1]])
        columns, down = (objects[which, 1:3] * extents).long().unbind(1)
        check_indices(self, columns, cells.shape[2], "the column of an object")
        check_indices(self, down, cells.shape[1], "the row of an object")
        check_indices(self, objects[:, 0].long(), self.options.num_class, "class")
        places = images[which], down, columns, place_of[anchor]
        return _Matches(places, images[which] * rows.shape[1] + numbers[which])

    def _put(self, found: Tensor, shares: Tensor, rows: Tensor, matches: _Matches) -> None:
        """The differences of boxes with objects: of several, the last has the place."""
        options = self.options
        objects = rows.flatten(0, 1)[matches.objects]
        keys = torch.stack(matches.places, 1)
        boxes, inverse = keys.unique(dim=0, return_inverse=True)
        numbers = torch.arange(len(keys), device=keys.device)
        last = numbers.new_zeros(len(boxes)).scatter_reduce_(0, inverse, numbers, "amax")
        values, own = shares[tuple(boxes.unbind(1))], objects[last]
        extents = values.new_tensor([found.shape[2], found.shape[1]])
        moved = own[:, 1:3] * extents - boxes[:, [2, 1]]
        grown = (own[:, 3:5] / self._anchors(found)[self.mask][boxes[:, 3]]).log()
        scale = options.coord_scale * (2 - own[:, 3:4] * own[:, 4:5])
        box = scale * (values[:, :4] - torch.cat([moved, grown], 1))
        sure = values[:, 4:5] - 1
        if options.use_logic_gradient:
            sure = sure * options.object_scale
        classes = torch.zeros_like(values[:, _BOX:])
        classes[inverse, objects[:, 0].long()] = 1
        wanted = classes * (1 - options.label_smooth_eps) + 0.5 * options.label_smooth_eps
        kinds = options.class_scale * (values[:, _BOX:] - wanted)
        found[tuple(boxes.unbind(1))] = torch.cat([box, sure, kinds], 1)
