"""What layers that read a detector's predictions have in common: shapes and checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, count
from caffe_dns.layers.detection.boxes import BoxCode
from caffe_dns.proto.caffe_pb2 import PriorBoxParameter


class PredictionLayer(Layer):
    """A layer on N images' codes [N, P * L * 4] and scores [N, P * C] for P prior boxes.

    C is the number of classes, L that of the classes with boxes of their own: C, or 1 for
    `share_location`. The third bottom is that of PriorBox, 1 x 2 x (P * 4). Subclasses name the
    field of their settings.
    """

    field: str

    @property
    def options(self) -> Any:
        """The layer's message with the settings."""
        return getattr(self.param, self.field)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        if self.options.num_classes < 1:
            raise self.error("must be given, and be positive", f"{self.field}.num_classes")
        self.classes = int(self.options.num_classes)
        self.box_classes = 1 if self.options.share_location else self.classes
        self.background = int(self.options.background_label_id)

    def code(self, variance_in_target: bool) -> BoxCode:
        return BoxCode(self.options.code_type, variance_in_target)

    def check_shapes(self, bottom_shapes: Sequence[Shape]) -> None:
        """Raise CaffeError unless the first three bottoms fit each other."""
        codes, scores, priors = bottom_shapes[:3]
        if len(priors) < 3 or priors[:2] != (1, 2) or count(priors[2:]) % 4:
            raise self.error(f"the prior boxes are 1 x 2 x (boxes * 4), not {priors}", "bottom")
        if codes[:1] != scores[:1] or not codes:
            raise self.error(f"bottoms of {codes[:1]} and {scores[:1]} images", "bottom")
        boxes = count(priors[2:]) // 4
        for what, shape, each in (
            ("locations", codes, 4 * self.box_classes),
            ("scores", scores, self.classes),
        ):
            if count(shape[1:]) != boxes * each:
                raise self.error(
                    f"{boxes} prior boxes need {boxes * each} {what} of an image, not "
                    f"{count(shape[1:])}",
                    "bottom",
                )

    def check_refinement(self, bottom_shapes: Sequence[Shape], first: int) -> None:
        """Raise CaffeError unless the bottoms from `first` on are N x (P * 2) and N x (P * 4).

        They are what RefineDet's first half says of the prior boxes: how likely each is an
        object's, and how it is to be moved. Either may be missing.
        """
        images, boxes = bottom_shapes[0][0], count(bottom_shapes[2][2:]) // 4
        for shape, each in zip(bottom_shapes[first:], (2, 4), strict=False):
            if shape[:1] != (images,) or count(shape[1:]) != boxes * each:
                raise self.error(
                    f"is {tuple(shape)}; {images} x {boxes * each} would be right for "
                    f"{boxes} prior boxes",
                    "bottom",
                )

    def priors(self, bottom: Tensor) -> tuple[Tensor, Tensor]:
        """The prior boxes [P, 4] and their variances [P, 4]."""
        boxes, variances = bottom.detach().reshape(2, -1, 4)
        if self.options.code_type != PriorBoxParameter.CORNER and boxes.device.type == "cpu":
            # On a GPU the host would have to wait for the values.
            empty = (boxes[:, 2:] <= boxes[:, :2]).any(1)
            if bool(empty.any()):
                number = int(empty.nonzero()[0])
                corners = ", ".join(f"{value:g}" for value in boxes[number].tolist())
                raise self.error(
                    f"prior box {number} ({corners}) has no area, by which code_type "
                    f"{PriorBoxParameter.CodeType.Name(self.options.code_type)} divides",
                    "bottom",
                )
        return boxes, variances


def order_of(scores: Tensor) -> Tensor:
    """Places along the last axis, best score first; of equal scores the first comes first."""
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices
