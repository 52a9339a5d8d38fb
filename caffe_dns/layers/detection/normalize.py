"""Normalize: scales every item, or every place in it, to an L2 norm that is learned."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from caffe_dns.layers.base import SameShape, Shape, layer_types
from caffe_dns.proto.caffe_pb2 import FillerParameter


@layer_types.register("Normalize")
class Normalize(SameShape):
    """x / sqrt(sum of squares + eps), times a scale (`normalize_layer.cpp`).

    The bottom is N x C x ..., with up to four axes. The sum goes over all of an item, or with
    `across_spatial: false` over the channels at each place. One blob: the scale, of shape [] for
    all channels together, else [C].
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.norm_param
        if settings.eps < 0:
            raise self.error(f"is {settings.eps:g}; at least 0 would be right", "norm_param.eps")
        self._check(bottom_shapes[0])
        filler = settings.scale_filler
        if not settings.HasField("scale_filler"):
            filler = FillerParameter(type="constant", value=1)
        shape = () if settings.channel_shared else (bottom_shapes[0][1],)
        self.add_parameter(shape, filler, "weight")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self._check(bottom_shapes[0])
        scales = self.blobs[0].shape
        if scales and scales[0] != bottom_shapes[0][1]:
            raise self.error(
                f"there are scales for {scales[0]} channels, the bottom has {bottom_shapes[0][1]}",
                "bottom",
            )
        return super().reshape(bottom_shapes)

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, settings = bottoms[0], self.param.norm_param
        axes = tuple(range(1, bottom.dim())) if settings.across_spatial else (1,)
        norms = (bottom.square().sum(axes, keepdim=True) + settings.eps).sqrt()
        scale = self.blobs[0]
        if scale.dim():
            scale = scale.view(-1, *[1] * (bottom.dim() - 2))
        return bottom / norms * scale

    def _check(self, shape: Shape) -> None:
        if not 2 <= len(shape) <= 4:
            raise self.error(f"the bottom needs 2 to 4 axes, it has {len(shape)}", "bottom")
