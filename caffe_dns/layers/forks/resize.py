"""Layers that resize images: Interp, Upsample, and Synopsys' Resize layers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, layer_types
from caffe_dns.layers.checks import check_indices, refuse_in_place

Pair = tuple[int, int]


def _check_axes(layer: Layer, shape: Shape) -> None:
    if len(shape) != 4:
        raise layer.error(
            f"the bottom needs 4 axes (num, channels, height, width), it has {len(shape)}", "bottom"
        )


@layer_types.register("Interp")
class Interp(Layer):
    """Bilinear interpolation between pixels, the corners' in the corners (DeepLab, PSPNet).

    The size is shrunk, zoomed, given, or shrunk and then zoomed, by the first of these that the
    fields say; `pad_beg` and `pad_end` cut rows and columns off before. With `use_blob_size`, it
    is that of a second bottom, whose values do not count (soeaver's caffe-model).
    """

    needs_numbers = ALL_BOTTOMS

    bottoms = (1, 2)
    no_force_backward = (1,)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.interp_param
        if settings.use_blob_size != (len(bottom_shapes) == 2):
            raise self.error(
                "is for a second bottom, and a second bottom for it", "interp_param.use_blob_size"
            )
        for name in ("pad_beg", "pad_end"):
            if getattr(settings, name) > 0:
                raise self.error("may cut off (0 or less), not add", f"interp_param.{name}")
        for name in ("zoom_factor", "shrink_factor"):
            if getattr(settings, name) < 1:
                raise self.error("must be at least 1", f"interp_param.{name}")
        by_factor = settings.HasField("zoom_factor") or settings.HasField("shrink_factor")
        if (
            not settings.use_blob_size
            and not by_factor
            and not (settings.HasField("height") and settings.HasField("width"))
        ):
            raise self.error("give height and width, zoom_factor or shrink_factor", "interp_param")
        self.cut = -settings.pad_beg, -settings.pad_end

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        _check_axes(self, shape)
        image = shape[2] - sum(self.cut), shape[3] - sum(self.cut)
        if len(bottom_shapes) == 2:
            _check_axes(self, bottom_shapes[1])
        size = self.output_size(image, bottom_shapes[1:])
        if min(*image, *size) < 1:
            raise self.error(f"nothing is left of {shape[2]} x {shape[3]} pixels", "interp_param")
        return [(*shape[:2], *size)]

    def output_size(self, image: Pair, others: Sequence[Shape] = ()) -> Pair:
        """Height and width for those of an image, or those of the second bottom."""
        if others:
            return others[0][2], others[0][3]
        settings = self.param.interp_param
        zooms, shrinks = settings.HasField("zoom_factor"), settings.HasField("shrink_factor")
        given = settings.HasField("height") and settings.HasField("width")
        if zooms == shrinks and given:
            return settings.height, settings.width
        height, width = image
        if shrinks:
            height, width = ((x - 1) // settings.shrink_factor + 1 for x in (height, width))
        if zooms:
            height, width = ((x - 1) * settings.zoom_factor + 1 for x in (height, width))
        return height, width

    def forward(self, *bottoms: Tensor) -> Tensor:
        first, last = self.cut
        _, _, height, width = bottoms[0].shape
        image = bottoms[0][:, :, first : height - last, first : width - last]
        others = [tuple(bottom.shape) for bottom in bottoms[1:]]
        size = self.output_size((image.shape[2], image.shape[3]), others)
        return F.interpolate(image, size, mode="bilinear", align_corners=True)


@layer_types.register("Upsample")
class Upsample(Layer):
    """Larger images, by repeating pixels or by putting them where a pooling took them from.

    With one bottom, each pixel becomes `scale` x `scale` (MobileNet-YOLO). A second bottom is the
    mask that is the second top of a Pooling: each value goes to its place in a plane that is 0
    elsewhere, `upsample_h` x `upsample_w` large or, in the old form, `scale` times the bottom, less
    a row or column with `pad_out_h` or `pad_out_w` (SegNet, ENet).
    """

    bottoms = (1, 2)
    no_force_backward = (1,)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.upsample_param
        self.by_mask = len(bottom_shapes) == 2
        if not self.by_mask:
            for field, _ in settings.ListFields():
                if field.name != "scale":
                    raise self.error(
                        "needs a mask as a second bottom", f"upsample_param.{field.name}"
                    )
        pairs = [("upsample_h", "upsample_w"), ("scale_h", "scale_w")]
        for pair in pairs:
            if len([name for name in pair if settings.HasField(name)]) == 1:
                raise self.error(f"give both {' and '.join(pair)}", f"upsample_param.{pair[0]}")
        scale = settings.scale if self.by_mask or settings.HasField("scale") else 1
        self.scale = scale, scale
        if settings.HasField("scale_h"):
            self.scale = settings.scale_h, settings.scale_w
        if min(self.scale) < 1:
            raise self.error("must be at least 1", "upsample_param.scale")
        for name, scale in zip(("pad_out_h", "pad_out_w"), self.scale, strict=True):
            if getattr(settings, name) and scale != 2:
                raise self.error("is for a scale of 2 only", f"upsample_param.{name}")

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        _check_axes(self, shape)
        if self.by_mask and tuple(bottom_shapes[1]) != tuple(shape):
            raise self.error(
                f"the mask is {' x '.join(map(str, bottom_shapes[1]))}, the first bottom "
                f"{' x '.join(map(str, shape))}; they need the same shape",
                "bottom",
            )
        return [(*shape[:2], *self.output_size((shape[2], shape[3])))]

    def output_size(self, image: Pair) -> Pair:
        """Height and width for those of the bottom."""
        settings = self.param.upsample_param
        if settings.HasField("upsample_h"):
            return settings.upsample_h, settings.upsample_w
        return (
            image[0] * self.scale[0] - settings.pad_out_h,
            image[1] * self.scale[1] - settings.pad_out_w,
        )

    def forward(self, *bottoms: Tensor) -> Tensor:
        bottom, *mask = bottoms
        size = self.output_size((bottom.shape[2], bottom.shape[3]))
        if not mask:
            return F.interpolate(bottom, size, mode="nearest")
        places = mask[0].detach().long().flatten(2)
        check_indices(self, places, size[0] * size[1], "the mask's place")
        planes = bottom.new_zeros(*bottom.shape[:2], size[0] * size[1])
        return planes.scatter(2, places, bottom.flatten(2)).view(*bottom.shape[:2], *size)


#: The axes of height and width by `data_format`.
_PLANES = {"NHWC": (1, 2), "NCHW": (2, 3)}


class Resize(Layer):
    """Images in another size, in which each place looks at one of the bottom.

    That is i * scale, or (i + 0.5) * scale for layers that look at middles, where the scale is the
    bottom's extent over the top's; with `align_corners`, of extents less 1.
    """

    needs_numbers = ALL_BOTTOMS

    #: The name of the settings, and the names in them of the ways to look of which one may be true.
    field = ""
    ways: tuple[str, ...] = ("align_corners", "half_pixel_centers")

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        refuse_in_place(self)
        self.resizing = getattr(self.param, self.field)
        if self.resizing.data_format not in _PLANES:
            what = f"is '{self.resizing.data_format}'; known: {', '.join(_PLANES)}"
            raise self.error(what, f"{self.field}.data_format")
        self.axes = _PLANES[self.resizing.data_format]
        chosen = [name for name in self.ways if getattr(self.resizing, name)]
        if len(chosen) > 1:
            raise self.error(f"give {chosen[0]} or {chosen[1]}, not both", f"{self.field}")
        self.way = chosen[0] if chosen else ""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = list(bottom_shapes[0])
        _check_axes(self, tuple(shape))
        for axis, name in zip(self.axes, ("height", "width"), strict=True):
            if self.resizing.HasField(f"output_{name}"):
                shape[axis] = getattr(self.resizing, f"output_{name}")
            else:
                # In float32, as there.
                scale = np.float32(getattr(self.resizing, f"scale_{name}"))
                shape[axis] = int(np.floor(np.float32(shape[axis]) * scale))
            if shape[axis] < 1:
                raise self.error(f"nothing is left of the {name}", f"{self.field}.output_{name}")
        return [tuple(shape)]

    def places(self, size: int, extent: int) -> Tensor:
        """Where the places of a top of `size` look in a bottom of `extent`, in float32."""
        corners = self.way == "align_corners"
        fewer = 1 if corners and size > 1 else 0
        scale = np.float32(extent - fewer) / np.float32(size - fewer)
        places = torch.arange(size, dtype=torch.float32)
        return (places + 0.5 if self.way and not corners else places) * float(scale)


@layer_types.register("ResizeNearestNeighbor")
class ResizeNearestNeighbor(Resize):
    """The pixel nearest to where each place looks (`resize_nearest_neighbor_layer.cpp`)."""

    field = "resize_nearest_neighbor_param"
    ways = (*Resize.ways, "half_pixel_onnx")

    def forward(self, *bottoms: Tensor) -> Tensor:
        (top,) = bottoms
        size = self.reshape([tuple(top.shape)])[0]
        for axis in self.axes:
            places = self.places(size[axis], top.shape[axis])
            if self.way == "half_pixel_onnx":
                places = places - 0.5
            # Halves go up; PyTorch's round goes to even numbers.
            places = (places + 0.5).floor() if self.way == "align_corners" else places.floor()
            places = places.long().clamp(0, top.shape[axis] - 1)
            top = top.index_select(axis, places.to(top.device))
        return top


@layer_types.register("ResizeBilinear")
class ResizeBilinear(Resize):
    """On a line between the two pixels around, along each axis (`resize_bilinear_layer.cpp`)."""

    field = "resize_bilinear_param"
    ways = (*Resize.ways, "pytorch_half_pixel")

    def forward(self, *bottoms: Tensor) -> Tensor:
        (top,) = bottoms
        size = self.reshape([tuple(top.shape)])[0]
        for axis in reversed(self.axes):
            top = self._along(top, axis, size[axis])
        return top

    def _along(self, bottom: Tensor, axis: int, size: int) -> Tensor:
        extent = bottom.shape[axis]
        places = self.places(size, extent)
        if self.way == "pytorch_half_pixel" and size == 1:
            places = torch.zeros(1)
        if self.way.endswith(("centers", "pixel")):
            places = places - 0.5
        lower = places.floor()
        share = (places - lower).to(bottom)
        first, second = (
            bottom.index_select(axis, index.long().clamp(0, extent - 1).to(bottom.device))
            for index in (lower, places.ceil())
        )
        return first + (second - first) * share.view(-1, *[1] * (bottom.dim() - 1 - axis))
