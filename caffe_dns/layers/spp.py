"""The SPP layer: as many outputs for any image size, by poolings of ever smaller windows.

The poolings themselves are in `pooling`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, layer_types
from caffe_dns.layers.pooling import (
    Pair,
    Window,
    average_pool,
    expected_pool,
    max_pool,
    stochastic_pool,
)
from caffe_dns.proto.caffe_pb2 import SPPParameter


@layer_types.register("SPP")
class SPP(Layer):
    """Pyramid pooling: level i cuts the image into 2^i by 2^i bins (`spp_layer.cpp`).

    A bottom of shape N x C x H x W makes a top of shape (N, C * all bins), or N x C x 1 x 1 with a
    single level.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        self.levels = self.param.spp_param.pyramid_height
        if self.levels < 1:
            raise self.error("must be given and positive", "spp_param.pyramid_height")
        self.method = self.param.spp_param.pool

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) != 4 or min(shape) < 1:
            raise self.error(
                f"the bottom needs 4 axes (num, channels, height, width), not {tuple(shape)}",
                "bottom",
            )
        image = shape[2], shape[3]
        sizes = [window.output_size(image) for window in self.windows(image)]
        if self.levels == 1:
            return [(*shape[:2], *sizes[0])]
        return [(shape[0], shape[1] * sum(height * width for height, width in sizes))]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom = bottoms[0]
        pooled = self._pool(bottom, self.windows((bottom.shape[2], bottom.shape[3])))
        if self.levels == 1:
            return pooled[0]
        return torch.cat([level.flatten(1) for level in pooled], 1)

    def _pool(self, bottom: Tensor, windows: list[Window]) -> list[Tensor]:
        if self.method == SPPParameter.MAX:
            return [max_pool(bottom, window)[0] for window in windows]
        if self.method == SPPParameter.AVE:
            return [average_pool(bottom, window) for window in windows]
        if self.training:
            generator = self.generator()
            return [stochastic_pool(bottom, window, generator) for window in windows]
        return [expected_pool(bottom, window) for window in windows]

    def windows(self, image: Pair) -> list[Window]:
        """The window of each level, padded so that its bins cover the image."""
        windows = []
        for level in range(self.levels):
            bins = 2**level
            kernel = -(-image[0] // bins), -(-image[1] // bins)
            # The pad goes to both sides, so half of what is missing, rounded up.
            pad = (
                (kernel[0] * bins - image[0] + 1) // 2,
                (kernel[1] * bins - image[1] + 1) // 2,
            )
            if pad[0] >= kernel[0] or pad[1] >= kernel[1]:
                raise self.error(
                    f"is {self.levels}; an image of {image[0]} x {image[1]} cannot be cut into "
                    f"{bins} x {bins} bins",
                    "spp_param.pyramid_height",
                )
            if any(pad) and self.method == SPPParameter.STOCHASTIC:
                raise self.error(
                    f"STOCHASTIC takes no padding, which {bins} x {bins} bins of an image of "
                    f"{image[0]} x {image[1]} need",
                    "spp_param.pool",
                )
            windows.append(Window(kernel, stride=kernel, pad=pad))
        return windows
