"""The Im2col layer: the patches that a convolution would multiply by its weight, as channels.

The settings are those of a convolution; convolutions themselves do not use this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape, count, layer_types
from caffe_dns.layers.spatial import SIDES, missing, spatial_setting
from caffe_dns.proto.fields import refuse_fields


@layer_types.register("Im2col")
class Im2col(Layer):
    """Channels times kernel positions instead of channels, over any number of spatial axes.

    (..., C, spatial...) becomes (..., C * kernel positions, output spatial...), the positions in
    row-major order within their channel (`im2col_layer.cpp`, `util/im2col.cpp`).
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        num_axes = len(bottom_shapes[0])
        not_here = {"Convolution": (*SIDES, "hole")}
        refuse_fields(self.param.convolution_param, "convolution_param", not_here)
        axis = self.param.convolution_param.axis
        self.channel_axis = self.axis(axis, num_axes, "convolution_param.axis")
        spatial = num_axes - self.channel_axis - 1
        if spatial < 1:
            raise self.error("leaves no spatial axis behind the channels", "convolution_param.axis")
        self.kernel = spatial_setting(self, spatial, "kernel_size", ("kernel_h", "kernel_w"))
        self.stride = spatial_setting(self, spatial, "stride", ("stride_h", "stride_w"), default=1)
        self.pad = spatial_setting(self, spatial, "pad", ("pad_h", "pad_w"), default=0, least=0)
        self.dilation = spatial_setting(
            self, spatial, "dilation", ("dilation_h", "dilation_w"), default=1
        )

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        outputs = []
        for i, extent in enumerate(shape[self.channel_axis + 1 :]):
            free = extent + sum(self._padding(extent, i)) - self._reach(i)
            if free < 0:
                raise self.error(
                    f"the kernel {self.kernel} is larger than the padded input {shape}",
                    "convolution_param.kernel_size",
                )
            outputs.append(free // self.stride[i] + 1)
        channels = shape[self.channel_axis] * count(self.kernel)
        return [(*shape[: self.channel_axis], channels, *outputs)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (top_shape,) = self.reshape([bottoms[0].shape])
        first, spatial = self.channel_axis + 1, len(self.kernel)
        # F.pad counts from the last axis backwards.
        extents = bottoms[0].shape[first:]
        windows = F.pad(
            bottoms[0],
            [pad for i in reversed(range(spatial)) for pad in self._padding(extents[i], i)],
        )
        for i in range(spatial):
            windows = windows.unfold(first + i, self._reach(i), self.stride[i])
            windows = windows[..., :: self.dilation[i]]
        leading, outputs = range(first), range(first, first + spatial)
        positions = range(first + spatial, first + 2 * spatial)
        return windows.permute(*leading, *positions, *outputs).reshape(top_shape)

    def _padding(self, extent: int, i: int) -> tuple[int, int]:
        """What is added before and behind spatial axis `i` of this extent."""
        pad = self.pad[i]
        return pad, pad + missing(extent + 2 * pad, self._reach(i), self.stride[i])

    def _reach(self, i: int) -> int:
        """How many entries of spatial axis `i` the dilated kernel spans."""
        return self.dilation[i] * (self.kernel[i] - 1) + 1
