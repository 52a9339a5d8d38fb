"""Layers that map every entry by itself, and that only forks have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import SameShape, Shape, layer_types

#: Where ReLU6 ends.
SIX = 6.0


@layer_types.register("ReLU6")
class ReLU6(SameShape):
    """A ReLU that stays at 6 from there on, without a gradient (MobileNet-YOLO).

    `relu6_param` may give it a slope below 0.
    """

    keeps_type = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.negative_slope = self.param.relu6_param.negative_slope

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        if self.negative_slope == 0:
            return F.relu6(bottom)
        return torch.where(bottom >= SIX, SIX, F.leaky_relu(bottom, self.negative_slope))
