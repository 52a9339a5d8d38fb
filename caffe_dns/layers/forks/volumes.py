"""Pooling of videos, N x C x L x H x W: Pooling3D (C3D, P3D) and NdPooling (video-caffe).

Convolutions of videos are Caffe's own; `proto/upgrade_forks` converts those of the forks to them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, layer_types
from caffe_dns.layers.pooling import Window, average_pool, max_of
from caffe_dns.layers.spatial import MOST, SIDES
from caffe_dns.proto.caffe_pb2 import PoolingParameter
from caffe_dns.proto.fields import refuse_fields

#: Values for time, height and width.
Triple = tuple[int, int, int]


class VolumePooling(Layer):
    """The maximum or the mean of each window; first over the frames' planes, then over time.

    Of equal maxima, the first gets the gradient. Windows are counted and means are divided as
    Pooling does it.
    """

    needs_numbers = ALL_BOTTOMS

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        if self.param.pooling_param.global_pooling:
            raise self.error("is for images only", "pooling_param.global_pooling")
        refuse_fields(self.param.pooling_param, "pooling_param", {"Pooling": (*SIDES, "pad_type")})
        if self.method not in (PoolingParameter.MAX, PoolingParameter.AVE):
            method = PoolingParameter.PoolMethod.Name(self.method)
            raise self.error(f"{method} is for images only; MAX and AVE would be right", self.field)
        kernel, stride, pad = self.extents()
        for name, values, least in (("kernel", kernel, 1), ("stride", stride, 1), ("pad", pad, 0)):
            if min(values) < least:
                raise self.error(f"the {name} must be given and at least {least}", self.field)
            if max(values) > MOST:
                raise self.error(f"the {name} must be at most {MOST}", self.field)
        if any(width >= side for width, side in zip(pad, kernel, strict=True)):
            raise self.error("the pad must be smaller than the kernel", self.field)
        self.plane = Window(kernel[1:], stride[1:], pad[1:])
        self.time = Window((kernel[0], 1), (stride[0], 1), (pad[0], 0))

    @property
    def field(self) -> str:
        """The name of the settings."""
        raise NotImplementedError

    @property
    def method(self) -> int:
        """The PoolMethod."""
        return int(getattr(self.param, self.field).pool)

    def extents(self) -> tuple[Triple, Triple, Triple]:
        """Kernel, stride and pad; not checked yet."""
        raise NotImplementedError

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if len(shape) != 5:
            raise self.error(
                "the bottom needs 5 axes (num, channels, length, height, width), it has "
                f"{len(shape)}",
                "bottom",
            )
        height, width = self.plane.output_size((shape[3], shape[4]))
        length, _ = self.time.output_size((shape[2], 1))
        if min(length, height, width) < 1:
            raise self.error(f"does not fit into the bottom's {shape[2:]}", self.field)
        return [(*shape[:2], length, height, width)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (shape,) = self.reshape([tuple(bottoms[0].shape)])
        pool = max_of if self.method == PoolingParameter.MAX else average_pool
        planes = pool(bottoms[0].flatten(1, 2), self.plane)
        return pool(planes.reshape(*shape[:2], -1, shape[3] * shape[4]), self.time).view(shape)


@layer_types.register("Pooling3D")
class Pooling3D(VolumePooling):
    """With one value for height and width (`pool3d_layer.cpp`, P3D's `pooling3d_layer.cpp`)."""

    @property
    def field(self) -> str:
        return "pooling3d_param" if self.param.HasField("pooling3d_param") else "pooling_param"

    def extents(self) -> tuple[Triple, Triple, Triple]:
        settings = getattr(self.param, self.field)
        depth, step, pad = settings.kernel_depth, settings.temporal_stride, 0
        if self.field == "pooling3d_param" and not settings.HasField("kernel_depth"):
            depth, step, pad = settings.kernel_l, settings.stride_l, settings.pad_l
        return (
            (depth, settings.kernel_size, settings.kernel_size),
            (step, settings.stride, settings.stride),
            (pad, settings.pad, settings.pad),
        )


@layer_types.register("NdPooling")
class NdPooling(VolumePooling):
    """With a value for each axis (`cudnn_ndpooling_layer.cpp`)."""

    field = "pooling_param"

    def extents(self) -> tuple[Triple, Triple, Triple]:
        return (
            self._triple("kernel_shape", 0),
            self._triple("stride_shape", 1),
            self._triple("pad_shape", 0),
        )

    def _triple(self, name: str, default: int) -> Triple:
        values = list(getattr(self.param.pooling_param, name).dim) or [default] * 3
        if len(values) != 3:
            raise self.error(f"needs 3 values, it has {len(values)}", f"pooling_param.{name}")
        length, height, width = values
        return length, height, width
