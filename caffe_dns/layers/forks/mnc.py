"""Masks of regions in MNC's cascade: ROIWarping, MaskResize and MaskPooling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, layer_types
from caffe_dns.layers.checks import check_positive
from caffe_dns.layers.forks.channels import ChannelScale
from caffe_dns.layers.forks.roi import RegionPooling, bin_corners, rounded, sampled


@layer_types.register("ROIWarping")
class ROIWarping(RegionPooling):
    """The first corners of pooled_h x pooled_w bins of each region, between pixels.

    Regions end at whole pixels; without extent, they are a point. Top R x C x pooled_h x pooled_w,
    by bilinear interpolation. Regions have a gradient, too, as if they were not rounded
    (`roi_warping_layer.cu`).
    """

    no_force_backward = ()

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.roi_warping_param
        check_positive(self, "roi_warping_param", ("pooled_h", "pooled_w"))
        self.size, self.scale = (settings.pooled_h, settings.pooled_w), settings.spatial_scale

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        return [(bottom_shapes[1][0], bottom_shapes[0][1], *self.size)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, regions = bottoms
        images, corners = self.split(regions, bottom.shape[0])
        exact = regions.reshape(-1, 5)[:, 1:] * self.scale
        corners = exact + (rounded(corners * self.scale) - exact).detach()
        sides = (corners[:, 2:] - corners[:, :2]).clamp(min=0)
        # Corners are x before y.
        lines, places = (
            bin_corners(corners[:, axis], sides[:, axis], self.size[1 - axis])[:, :-1]
            for axis in (1, 0)
        )
        return sampled(bottom, images, lines, places)


@layer_types.register("MaskResize")
class MaskResize(Layer):
    """Masks N x C x H x W in another size, by bilinear interpolation from their first corner on.

    Places beyond the last pixel by more than a half are 0 (`mask_resize_layer.cu`).
    """

    needs_numbers = ALL_BOTTOMS

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.mask_resize_param
        check_positive(self, "mask_resize_param", ("output_height", "output_width"))
        self.size = settings.output_height, settings.output_width

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = tuple(bottom_shapes[0])
        if len(shape) != 4:
            raise self.error(f"the bottom needs 4 axes, it has {len(shape)}", "bottom")
        return [(*shape[:2], *self.size)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        (bottom,) = bottoms
        images = torch.arange(len(bottom), device=bottom.device)
        first = bottom.new_zeros(len(bottom))
        lines, places = (
            bin_corners(first, first + extent, bins)[:, :-1]
            for bins, extent in zip(self.size, bottom.shape[2:], strict=True)
        )
        return sampled(bottom, images, lines, places)


@layer_types.register("MaskPooling")
class MaskPooling(ChannelScale):
    """Channels of each place times a mask: bottoms N x C x H x W and N x 1 x H x W."""
