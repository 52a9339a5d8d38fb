"""DetectionOutput on the maps of convolutions, without Permute, Flatten and Concat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import Shape, count, layer_types
from caffe_dns.layers.detection.detection_output import DetectionOutput


@layer_types.register("DetectionOutputOfMaps")
class DetectionOutputOfMaps(DetectionOutput):
    """A DetectionOutput with `no_permute`, of `nbottom` maps (`detection_output_layer.cpp`).

    Bottoms: scores N x C x R x (H * W) of each map, then its locations N x (R * L * 4) x H x W, for
    R boxes at each of its places; then PriorBox's boxes of all maps, or of each.
    """

    bottoms = (3, None)
    no_force_backward = tuple(range(100))

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        super().build(bottom_shapes[:3])
        self.maps = self.options.nbottom
        if self.maps < 1 or len(bottom_shapes) not in (2 * self.maps + 1, 3 * self.maps):
            raise self.error(
                f"is {self.maps}; {2 * self.maps + 1} or {3 * self.maps} bottoms would be right "
                f"for it, not {len(bottom_shapes)}",
                f"{self.field}.nbottom",
            )
        if self.refines:
            raise self.error("is not for no_permute", f"{self.field}.objectness_score")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        maps = self.maps
        for scores, codes in zip(bottom_shapes[:maps], bottom_shapes[maps : 2 * maps], strict=True):
            if len(scores) != 4 or len(codes) != 4 or scores[3] != codes[2] * codes[3]:
                raise self.error(
                    f"scores {tuple(scores)} and locations {tuple(codes)}; N x classes x R x (H * "
                    "W) and N x (R * 4) x H x W would be right",
                    "bottom",
                )
        each = [
            (shapes[0][0], sum(count(shape[1:]) for shape in shapes))
            for shapes in (bottom_shapes[maps : 2 * maps], bottom_shapes[:maps])
        ]
        priors = bottom_shapes[2 * maps :]
        boxes = sum(count(shape[2:]) for shape in priors)
        return super().reshape([*each, (*priors[0][:2], boxes)])

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        maps = self.maps
        # Place by place, as PriorBox has its boxes.
        scores = [each.permute(0, 3, 2, 1).flatten(1) for each in bottoms[:maps]]
        codes = [each.permute(0, 2, 3, 1).flatten(1) for each in bottoms[maps : 2 * maps]]
        priors = [each.flatten(2) for each in bottoms[2 * maps :]]
        return super().forward(*(torch.cat(each, -1) for each in (codes, scores, priors)))
