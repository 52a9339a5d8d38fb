"""Pooling of regions of interest: ROIPooling, PSROIPooling and ROIAlign.

A region is a row (image, x1, y1, x2, y2) in the units of the input, corners included. It is cut
into equal bins, which overlap where they share a pixel; each bin gives one value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import FIRST_BOTTOM, Layer, Shape, count, layer_types
from caffe_dns.layers.checks import check_indices

#: How many pixels are looked at together, each bin's as many as the largest of the chunk has.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Bins:
    """Whole pixels of one axis for each region and bin: from `starts` up to `ends`, R x bins."""

    starts: Tensor
    ends: Tensor

    @classmethod
    def clipped(cls, starts: Tensor, ends: Tensor, extent: int) -> Bins:
        """Only pixels inside the bottom; a bin outside is empty."""
        return cls(starts.long().clamp(0, extent), ends.long().clamp(0, extent))

    @property
    def sizes(self) -> Tensor:
        return (self.ends - self.starts).clamp(min=0)

    def pixels(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels of these regions' bins, r x bins x most, and which of them are real."""
        starts, sizes = self.starts[regions], self.sizes[regions]
        steps = torch.arange(max(int(sizes.max()), 1), device=starts.device)
        inside = steps < sizes[..., None]
        return (starts[..., None] + steps) * inside, inside


def rounded(values: Tensor) -> Tensor:
    """The nearest whole numbers, halves away from zero, as C's `round`."""
    whole = values.trunc()
    return whole + (values - whole).abs().ge(0.5) * values.sign()


def bin_corners(start: Tensor, side: Tensor, bins: int) -> Tensor:
    """Where the bins of each of R sides begin and the last one ends, R x (bins + 1)."""
    index = torch.arange(bins + 1, device=start.device, dtype=start.dtype)
    return start[:, None] + index * (side / bins)[:, None]


def sampled(bottom: Tensor, images: Tensor, lines: Tensor, places: Tensor) -> Tensor:
    """What lies between pixels by bilinear interpolation, 0 beyond the bottom N x C x H x W.

    For each of R, in the image that it has, at `lines` [R, l] and `places` [R, p], counted from the
    middle of the first pixel: R x C x l x p.
    """
    height, width = bottom.shape[2:]
    inside = _inside(lines, height)[:, :, None] & _inside(places, width)[:, None]
    planes = bottom.flatten(2).transpose(1, 2)
    top = torch.zeros((), device=bottom.device)
    for row, share in _neighbours(lines, height):
        for column, part in _neighbours(places, width):
            pixels = (row[:, :, None] * width + column[:, None]).flatten(1)
            values = planes[images[:, None], pixels].unflatten(1, inside.shape[1:])
            weight = (share[:, :, None] * part[:, None]).to(bottom.dtype)
            top = top + values * weight[..., None]
    return (top * inside[..., None]).permute(0, 3, 1, 2)


def _inside(points: Tensor, extent: int) -> Tensor:
    return (points >= -0.5) & (points <= extent - 0.5)


def _neighbours(points: Tensor, extent: int) -> list[tuple[Tensor, Tensor]]:
    """The pixels before and after each point, and what each counts."""
    before = points.floor().clamp(0, extent - 1)
    after = (points.floor() + 1).clamp(0, extent - 1)
    beyond = points.clamp(0, extent - 1) - before
    # Where a point is no number, neither is the top; its pixels only have to be there.
    pixels = (each.nan_to_num().long() for each in (before, after))
    return [*zip(pixels, (1 - beyond, beyond), strict=True)]


class _BinMaximum(torch.autograd.Function):
    """The maximum of each bin, R x C x rows x columns; 0 and no gradient where a bin is empty."""

    @staticmethod
    def forward(ctx: Any, bottom: Tensor, images: Tensor, rows: Bins, columns: Bins) -> Tensor:
        num, channels, height, width = bottom.shape
        planes = bottom.reshape(num, channels, height * width)
        shape = (len(images), channels, rows.starts.shape[1], columns.starts.shape[1])
        top = bottom.new_zeros(shape)
        winners = torch.full(shape, -1, device=bottom.device)
        for regions in _chunks(channels, rows, columns):
            pixels, inside = _pixels(rows, columns, regions, width)
            # Channels stay in front: regions of one image share their planes.
            values = planes[images[regions][:, None, None, None], :, pixels].movedim(-1, 1)
            values = values.masked_fill(~inside[:, None], -torch.inf)
            most, place = values.max(-1)
            filled = inside.any(-1)[:, None]
            place = pixels[:, None].expand(-1, channels, -1, -1, -1).gather(-1, place[..., None])
            top[regions] = most.where(filled, 0)
            winners[regions] = place.squeeze(-1).where(filled, -1)
        ctx.save_for_backward(images, winners)
        ctx.bottom_shape = bottom.shape
        return top

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        images, winners = ctx.saved_tensors
        num, channels, height, width = ctx.bottom_shape
        planes = images[:, None] * channels + torch.arange(channels, device=images.device)
        places = planes[..., None, None] * (height * width) + winners.clamp(min=0)
        total = gradient.new_zeros(num * channels * height * width)
        total.index_add_(0, places.flatten(), gradient.where(winners >= 0, 0).flatten())
        return total.view(ctx.bottom_shape), None, None, None


def _chunks(channels: int, rows: Bins, columns: Bins) -> Iterator[Tensor]:
    """The regions in portions of like size, none too large for the memory."""
    most = rows.sizes.amax(1) * columns.sizes.amax(1)
    bins = rows.starts.shape[1] * columns.starts.shape[1]
    order = most.argsort()
    portion: list[int] = []
    for region, pixels in zip(order.tolist(), most[order].tolist(), strict=True):
        if portion and (len(portion) + 1) * channels * bins * pixels > CHUNK:
            yield torch.tensor(portion, device=most.device)
            portion = []
        portion.append(region)
    if portion:
        yield torch.tensor(portion, device=most.device)


def _pixels(rows: Bins, columns: Bins, regions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Each bin's pixels as indices into a plane, and which are real: r x rows x columns x n."""
    lines, in_rows = rows.pixels(regions)
    places, in_columns = columns.pixels(regions)
    pixels = lines[:, :, None, :, None] * width + places[:, None, :, None, :]
    inside = in_rows[:, :, None, :, None] & in_columns[:, None, :, None, :]
    return pixels.flatten(-2), inside.flatten(-2)


class RegionPooling(Layer):
    """What both have in common. Bottoms: N x C x H x W, and regions R x 5 (x 1 x 1)."""

    bottoms = (2, 2)
    no_force_backward: ClassVar[tuple[int, ...]] = (1,)
    needs_numbers = FIRST_BOTTOM

    def check_bottoms(self, bottom_shapes: Sequence[Shape]) -> None:
        """Raise CaffeError unless the bottoms are an image blob and regions."""
        image, regions = bottom_shapes
        if len(image) != 4:
            raise self.error(
                "the first bottom needs 4 axes (num, channels, height, width), it has "
                f"{len(image)}",
                "bottom",
            )
        if not regions or count(regions[1:]) != 5:
            raise self.error(
                "the second bottom has rows of 5 numbers (image, x1, y1, x2, y2); its shape is "
                f"{' x '.join(map(str, regions))}",
                "bottom",
            )

    def split(self, regions: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """The image of each region, and its corners R x 4 in float32, as the forks compute them.

        Raises CaffeError for a region of an image that is not there.
        """
        rows = regions.detach().reshape(-1, 5)
        numbers = rows[:, 0].long()
        check_indices(self, numbers.cpu(), images, "a region's image")
        return numbers, rows[:, 1:].float()


class PaddedPooling(RegionPooling):
    """What those have in common that read `roi_pooling_param`.

    With `pad_ratio`, that share of its sides is added to a region on each side before (MS-CNN).
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.roi_pooling_param
        self.size = settings.pooled_h, settings.pooled_w
        self.scale = settings.spatial_scale
        self.pad_ratio = settings.pad_ratio
        for name in ("pooled_h", "pooled_w"):
            if getattr(settings, name) < 1:
                raise self.error("must be given and positive", f"roi_pooling_param.{name}")

    def scaled(self, regions: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """As `split`, with what is added to the regions, in pixels of the bottom."""
        numbers, corners = self.split(regions, images)
        if self.pad_ratio:
            pad = (corners[:, 2:] - corners[:, :2] + 1) * self.pad_ratio
            corners = torch.cat([corners[:, :2] - pad, corners[:, 2:] + pad], 1)
        return numbers, corners * self.scale


@layer_types.register("ROIPooling")
class ROIPooling(PaddedPooling):
    """The maximum of each of pooled_h x pooled_w bins of each region (Fast R-CNN).

    Top R x C x pooled_h x pooled_w; 0 where a bin has no pixel. Of equal maxima, the first gets the
    gradient.
    """

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        return [(bottom_shapes[1][0], bottom_shapes[0][1], *self.size)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, regions = bottoms
        images, corners = self.scaled(regions, bottom.shape[0])
        corners = rounded(corners)
        # Corners are x before y.
        bins = [
            self._bins(corners[:, axis], corners[:, axis + 2], self.size[1 - axis], extent)
            for axis, extent in ((1, bottom.shape[2]), (0, bottom.shape[3]))
        ]
        top: Tensor = _BinMaximum.apply(bottom, images, *bins)
        return top

    @staticmethod
    def _bins(first: Tensor, last: Tensor, number: int, extent: int) -> Bins:
        size = ((last - first + 1).clamp(min=1) / number)[:, None]
        index = torch.arange(number, device=first.device, dtype=first.dtype)
        starts = (index * size).floor() + first[:, None]
        ends = ((index + 1) * size).ceil() + first[:, None]
        return Bins.clipped(starts, ends, extent)


@layer_types.register("PSROIPooling")
class PSROIPooling(RegionPooling):
    """The mean of each of group_size x group_size bins, each over channels of its own (R-FCN).

    Bottom N x (output_dim * group_size^2) x H x W, whose channels are in the order of output, row
    and column of the bin. Top R x output_dim x group_size x group_size; 0 where a bin has no pixel.
    """

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.psroi_pooling_param
        self.outputs, self.group = settings.output_dim, settings.group_size
        self.scale = settings.spatial_scale
        for name in ("output_dim", "group_size"):
            if getattr(settings, name) < 1:
                raise self.error("must be given and positive", f"psroi_pooling_param.{name}")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        channels = bottom_shapes[0][1]
        if channels != self.outputs * self.group**2:
            raise self.error(
                f"the bottom has {channels} channels; output_dim * group_size^2 is "
                f"{self.outputs * self.group**2}",
                "psroi_pooling_param.output_dim",
            )
        return [(bottom_shapes[1][0], self.outputs, self.group, self.group)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, regions = bottoms
        images, corners = self.split(regions, bottom.shape[0])
        corners = rounded(corners)
        rows, columns = (
            self._bins(corners[:, axis], corners[:, axis + 2], extent)
            for axis, extent in ((1, bottom.shape[2]), (0, bottom.shape[3]))
        )
        # Sums over rectangles are differences of sums from the corner on; in float64, as a
        # difference of large sums.
        sums = F.pad(bottom.double().cumsum(2).cumsum(3), (1, 0, 1, 0))
        sums = sums.reshape(len(sums), self.outputs, self.group, self.group, *sums.shape[2:])
        index = torch.arange(self.group, device=bottom.device)
        outputs = torch.arange(self.outputs, device=bottom.device)[:, None, None]

        def upto(lines: Tensor, places: Tensor) -> Tensor:
            # All indices as R x outputs x rows x columns.
            lines, places = lines[:, None, :, None], places[:, None, None, :]
            numbers = images[:, None, None, None]
            return sums[numbers, outputs, index[:, None], index, lines, places]

        totals = (
            upto(rows.ends, columns.ends)
            - upto(rows.starts, columns.ends)
            - upto(rows.ends, columns.starts)
            + upto(rows.starts, columns.starts)
        )
        areas = rows.sizes[:, None, :, None] * columns.sizes[:, None, None, :]
        return torch.where(areas > 0, totals / areas.clamp(min=1), 0).to(bottom.dtype)

    def _bins(self, first: Tensor, last: Tensor, extent: int) -> Bins:
        start = (first * self.scale)[:, None]
        size = ((last + 1)[:, None] * self.scale - start).clamp(min=0.1) / self.group
        index = torch.arange(self.group, device=first.device, dtype=first.dtype)
        starts, ends = index * size + start, (index + 1) * size + start
        return Bins.clipped(starts.floor(), ends.ceil(), extent)


@layer_types.register("ROIAlign")
class ROIAlign(PaddedPooling):
    """The corners of pooled_h x pooled_w bins of each region, between pixels (MS-CNN).

    Top R x C x (pooled_h + 1) x (pooled_w + 1): what lies there by bilinear interpolation, 0 beyond
    the bottom, and everywhere for a region that ends before it begins (`roi_align_layer.cpp`).
    """

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        self.check_bottoms(bottom_shapes)
        rows, columns = self.size
        return [(bottom_shapes[1][0], bottom_shapes[0][1], rows + 1, columns + 1)]

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, regions = bottoms
        images, corners = self.scaled(regions, bottom.shape[0])
        corners = corners - 0.5
        sides = corners[:, 2:] - corners[:, :2]
        # Corners are x before y.
        lines, places = (
            bin_corners(corners[:, axis], sides[:, axis], self.size[1 - axis]) for axis in (1, 0)
        )
        return sampled(bottom, images, lines, places) * (sides > 0).all(1).view(-1, 1, 1, 1)
