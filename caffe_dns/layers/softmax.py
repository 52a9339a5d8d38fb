"""The Softmax layer: probabilities from scores. Losses on them are in `loss`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import SameShape, Shape, layer_types


@layer_types.register("Softmax")
class Softmax(SameShape):
    """exp(x) over its sum along `axis`, for a bottom of any shape (`softmax_layer.cpp`)."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self._axis(len(bottom_shapes[0]))
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        return torch.softmax(bottoms[0], self._axis(bottoms[0].dim()))

    def _axis(self, num_axes: int) -> int:
        return self.axis(self.param.softmax_param.axis, num_axes, "softmax_param.axis")
