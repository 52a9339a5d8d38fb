"""Boxes in MS-CNN's maps: offsets from the field, the region that a cell looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns.layers.base import Layer, Shape


@dataclass(frozen=True)
class Field:
    """What the cells of a map look at: `width` x `height` pixels around the middle of each.

    Cells lie `rate` pixels apart.
    """

    width: float
    height: float
    rate: float

    def sides(self, like: Tensor) -> Tensor:
        """Width and height of the field."""
        return like.new_tensor([self.width, self.height])

    def middles(self, columns: int, cells: int, like: Tensor) -> Tensor:
        """x and y of the middle of each cell, row by row: cells x 2."""
        at = torch.arange(cells, device=like.device)
        return (torch.stack([at % columns, at // columns], 1).to(like.dtype) + 0.5) * self.rate

    def decode(
        self, codes: Tensor, columns: int, shift: float, growth: float
    ) -> tuple[Tensor, Tensor]:
        """Middles and sides of boxes, [..., cells, 2] each, for differences [..., cells, 4].

        Those of middles count up to `shift` fields, those of sides up to `growth` in logarithms.
        """
        middles = codes[..., :2].clamp(-shift, shift) * self.sides(codes)
        sides = codes[..., 2:].clamp(-growth, growth).exp() * self.sides(codes)
        return middles + self.middles(columns, codes.shape[-2], codes), sides

    def encode(self, middles: Tensor, sides: Tensor, columns: int) -> Tensor:
        """The differences [..., cells, 4] of boxes; sides count as at least 2 pixels."""
        moved = middles - self.middles(columns, middles.shape[-2], middles)
        grown = sides.clamp(min=2) / self.sides(sides)
        return torch.cat([moved / self.sides(moved), grown.log()], -1)


class NormalizedLayer(Layer):
    """A layer on differences of boxes that `bbox_reg_param` has normalised."""

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.bbox_reg_param
        #: Means and deviations of x, y, width and height.
        self.mean, self.deviation = [0.0] * 4, [1.0] * 4
        if settings.bbox_mean and settings.bbox_std:
            self.mean, self.deviation = list(settings.bbox_mean), list(settings.bbox_std)
            if len(self.mean) != 4 or len(self.deviation) != 4:
                raise self.error("4 means and 4 deviations would be right", "bbox_reg_param")
            if min(self.deviation) <= 0:
                raise self.error("must be positive", "bbox_reg_param.bbox_std")

    def denormalized(self, codes: Tensor) -> Tensor:
        """The differences, rows of 4."""
        return codes * codes.new_tensor(self.deviation) + codes.new_tensor(self.mean)

    def normalized(self, codes: Tensor) -> Tensor:
        """The inverse of that."""
        return (codes - codes.new_tensor(self.mean)) / codes.new_tensor(self.deviation)


def mean_of(values: Tensor, counted: Tensor) -> Tensor:
    """The mean of those counted; -1 where there are none."""
    count = counted.sum()
    return torch.where(count > 0, values.where(counted, 0).sum() / count, -1)
