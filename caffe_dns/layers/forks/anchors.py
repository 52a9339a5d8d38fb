"""Proposal (PVANet): regions from scores for anchors, boxes of a few shapes at each place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, count, layer_types
from caffe_dns.layers.checks import check_positive
from caffe_dns.layers.detection.boxes import decode_by_centres, sides_of, uncovered


@layer_types.register("Proposal")
class Proposal(Layer):
    """The best regions of one image that no better one covers (`proposal_layer.cpp`).

    Bottoms: scores 1 x 2A x H x W of A anchors, the background's first; differences 1 x 4A x H x W
    of x, y and the logarithms of width and height; and height and width of the image in pixels with
    the factors by which both were resized, or one for both; further numbers are not read. Tops:
    regions R x 5 of image (0) and corners, the best first, and their scores, R. How many there are
    is known only in the forward pass; `reshape` says the most. No gradient passes through.
    """

    bottoms = (3, 3)
    tops = (1, 2)
    no_force_backward = (0, 1, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.options = self.param.proposal_param
        for name in ("ratio", "scale"):
            if not getattr(self.options, name) or min(getattr(self.options, name)) <= 0:
                raise self.error("needs positive values", f"proposal_param.{name}")
        sizes = ("feat_stride", "base_size", "pre_nms_topn", "post_nms_topn")
        check_positive(self, "proposal_param", sizes)
        self.anchors = torch.tensor(self._anchors(), device=self.context.device)

    def _anchors(self) -> list[list[float]]:
        """Where the anchors of the first place begin and end, ratio by ratio."""
        options = self.options
        middle = (options.base_size - 1) / 2
        found = []
        for ratio in options.ratio:
            # Whole pixels, halves up.
            width = int((options.base_size**2 / ratio) ** 0.5 + 0.5)
            height = int(width * ratio + 0.5)
            for scale in options.scale:
                x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
                found.append([middle - x, middle - y, middle + x + 1, middle + y + 1])
        return found

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, codes, image = map(tuple, bottom_shapes)
        number = len(self.anchors)
        if len(scores) != 4 or scores[:2] != (1, 2 * number):
            raise self.error(f"1 x {2 * number} x H x W would be right, not {scores}", "bottom")
        right = (1, 4 * number, *scores[2:])
        if codes != right:
            raise self.error(f"{right} would be right of differences, not {codes}", "bottom")
        if count(image) < 3:
            raise self.error(
                f"at least 3 numbers of the image would be right, not {image}", "bottom"
            )
        most = self.options.post_nms_topn
        tops: list[Shape] = [(most, 5), (most,)]
        return tops[: self.num_tops]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> list[Tensor]:
        options = self.options
        boxes, scores = self._boxes(*bottoms)
        # Of equal scores, the first one comes first; there it is left open.
        order = scores.argsort(descending=True, stable=True)[: options.pre_nms_topn]
        order = order[uncovered(boxes[order], self._leaves)[: options.post_nms_topn]]
        tops = [torch.cat([boxes.new_zeros(len(order), 1), boxes[order]], 1), scores[order]]
        return tops[: self.num_tops]

    def _boxes(self, scores: Tensor, codes: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Corners inside the image, and scores, of all boxes: place by place, anchor by anchor."""
        height, width = scores.shape[2:]
        numbers = image.flatten()
        last = numbers[[1, 0]] - 1
        least = self.options.min_size * numbers[[3 if len(numbers) > 3 else 2, 2]]
        places = torch.arange(height * width, device=scores.device)
        corner = torch.stack([places % width, places // width], 1) * self.options.feat_stride
        anchors = (corner.repeat(1, 2)[:, None] + self.anchors.to(scores.dtype)).flatten(0, 1)
        codes = codes.view(len(self.anchors), 4, -1).permute(2, 0, 1).flatten(0, 1)
        boxes = torch.minimum(decode_by_centres(codes, anchors).clamp(min=0), last.repeat(2))
        large = (sides_of(boxes) + 1 >= least).all(1)
        own = scores.view(2, len(self.anchors), -1)[1].t().flatten()
        return boxes, own * large

    def _leaves(self, box: Tensor, others: Tensor) -> Tensor:
        low = torch.maximum(box[:, :2], others[:, :2])
        high = torch.minimum(box[:, 2:], others[:, 2:])
        common = (high - low + 1).clamp(min=0).prod(1)
        own, theirs = ((sides_of(each) + 1).prod(1) for each in (box, others))
        # Boxes that do not touch have nothing in common, though a pixel is added to sides.
        common = common.where((low <= high).all(1), 0)
        return common / (own + theirs - common) <= self.options.nms_thresh
