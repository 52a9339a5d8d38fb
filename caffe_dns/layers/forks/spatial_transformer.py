"""SpatialTransformer: samples images through an affine map that the net computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, count, layer_types

#: The six numbers of the map, row by row.
_THETA = tuple(f"theta_{row}_{column}" for row in (1, 2) for column in (1, 2, 3))


@layer_types.register("SpatialTransformer")
class SpatialTransformer(Layer):
    """Each place of the top is where an affine map of it lies in the bottom (`st_layer.cpp`).

    Bottoms: images N x C x H x W, and N times those numbers of the map, 2 x 3, that the definition
    does not give. Coordinates go from -1 to 1: place i of n lies at 2 * i / n - 1, rows before
    columns. Values lie on lines between pixels; around the image there are zeros.
    """

    needs_numbers = ALL_BOTTOMS

    bottoms = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.st_param
        for name, known in (("transform_type", "affine"), ("sampler_type", "bilinear")):
            if getattr(settings, name) != known:
                what = f"is '{getattr(settings, name)}'; '{known}' would be right"
                raise self.error(what, f"st_param.{name}")
        self.given = [
            getattr(settings, name) if settings.HasField(name) else None for name in _THETA
        ]

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        images, theta = (tuple(shape) for shape in bottom_shapes)
        if len(images) != 4:
            raise self.error(f"the first bottom needs 4 axes, it has {len(images)}", "bottom")
        wanted = self.given.count(None)
        if theta[:1] != images[:1] or count(theta[1:]) != wanted:
            raise self.error(
                f"the map is {theta}; {images[0]} x {wanted} would be right for {images}", "bottom"
            )
        settings, (height, width) = self.param.st_param, images[2:]
        size = [
            settings.output_H if settings.HasField("output_H") else height,
            settings.output_W if settings.HasField("output_W") else width,
        ]
        if min(size) < 1:
            name = "output_H" if size[0] < 1 else "output_W"
            raise self.error("must be at least 1", f"st_param.{name}")
        return [(*images[:2], size[0], size[1])]

    def forward(self, *bottoms: Tensor) -> Tensor:
        images, computed = bottoms
        if not self.param.st_param.to_compute_dU:
            images = images.detach()
        _, _, rows, columns = self.reshape([tuple(each.shape) for each in bottoms])[0]
        x, y = self._map(computed.flatten(1), rows, columns)
        # -1 is the edge of PyTorch's first pixel, here its middle; and columns come first there.
        height, width = images.shape[2:]
        grid = torch.stack([y + 1 / width, x + 1 / height], -1)
        return F.grid_sample(images, grid, align_corners=False)

    def _map(self, computed: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Where each place lies in the bottom, twice [N, rows, columns]: along rows and columns."""
        left = iter(computed.unbind(1))
        numbers = [
            next(left) if value is None else computed.new_full((len(computed),), value)
            for value in self.given
        ]
        row = (torch.arange(rows).to(computed) / rows * 2 - 1)[:, None]
        column = torch.arange(columns).to(computed) / columns * 2 - 1
        a, b, shift, c, d, other = (number[:, None, None] for number in numbers)
        return a * row + b * column + shift, c * row + d * column + other
