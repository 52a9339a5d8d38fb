"""PriorBox and its variants: the boxes that a detector's predictions are relative to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, layer_types

#: Aspect ratios nearer to each other than this are the same.
SAME_RATIO = 1e-6
DEFAULT_VARIANCE = 0.1
#: The smallest size of TensorFlow's SSD on 300 x 300 pixels, whose squares are of 30 (`tf`).
_OF_TENSORFLOW = 60

Extents = tuple[float, float]


@layer_types.register("PriorBox")
class PriorBox(Layer):
    """The same boxes around every place of a feature map (`prior_box_layer.cpp`).

    Bottoms: the feature map N x C x H x W and, unless the definition gives the image's extents, the
    image. Top 1 x 2 x (H * W * boxes * 4): the boxes' corners in shares of the image, place after
    place, row by row; then for each of these numbers its variance. For each min_size there is a
    square, one of sqrt(min_size * max_size) if it has a max_size, and one box for each aspect ratio
    but 1. Without `use_default_aspect_ratio` the square is there only where an aspect ratio is 1,
    and in its turn. Sizes are cut to whole pixels. With `tf`, the square by max_size comes last,
    and that of a min_size of 60 is a tenth of the image smaller; with `yx_order`, y comes before x
    (Synopsys). No gradient passes through.
    """

    needs_numbers = ALL_BOTTOMS

    bottoms = (1, 2)
    no_force_backward = (0, 1)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.prior_box_param
        #: The squares that are a tenth of the image smaller than they say.
        self._smaller: list[int] = []
        self.sizes = self._sizes()
        self.variance = list(settings.variance) or [DEFAULT_VARIANCE]
        if len(self.variance) not in (1, 4):
            raise self._wrong("variance", f"given {len(self.variance)} times; 1 or 4 would be")
        if min(self.variance) <= 0:
            raise self._wrong("variance", f"is {min(self.variance):g}; more than 0 would be")
        self.image = self._pair("img_size", "img_h", "img_w")
        self.step = self._pair("step", "step_h", "step_w")
        if self.image is None and len(bottom_shapes) < 2:
            raise self.error("the image is missing: a second bottom, or img_size", "bottom")
        self._made_for: object = None

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for shape in bottom_shapes:
            if len(shape) != 4:
                raise self.error(f"a bottom needs 4 axes, it has {len(shape)}", "bottom")
        height, width = bottom_shapes[0][2:]
        return [(1, 2, height * width * len(self.sizes) * 4)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        image = self.image or tuple(float(extent) for extent in bottoms[1].shape[2:])
        wanted = (bottoms[0].shape[2:], image, bottoms[0].device, bottoms[0].dtype)
        if self._made_for != wanted:
            boxes = self._boxes(tuple(bottoms[0].shape[2:]), image)
            variances = torch.tensor(self.variance, dtype=boxes.dtype).expand(len(boxes), 4)
            top = torch.stack([boxes.flatten(), variances.flatten()]).unsqueeze(0)
            self._top, self._made_for = top.to(bottoms[0]), wanted
        return self._top

    def _boxes(self, places: tuple[int, ...], image: tuple[float, ...]) -> Tensor:
        """The boxes [H * W * boxes, 4] around `places` (height, width), float64."""
        steps = self.step or [extent / n for extent, n in zip(image, places, strict=True)]
        offset = self.param.prior_box_param.offset
        y, x = (
            (torch.arange(n, dtype=torch.float64) + offset) * step
            for n, step in zip(places, steps, strict=True)
        )
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([x, y], -1).unsqueeze(2)
        halves = torch.tensor(self.sizes, dtype=torch.float64) / 2
        extents = torch.tensor(image[::-1], dtype=torch.float64)
        corners = [(centres + sign * halves) / extents for sign in (-1, 1)]
        boxes = torch.cat(corners, -1)
        for index in self._smaller:
            boxes[:, :, index] += torch.tensor([0.05, 0.05, -0.05, -0.05])
        boxes = boxes.reshape(-1, 4)
        if self.param.prior_box_param.yx_order:
            boxes = boxes[:, [1, 0, 3, 2]]
        return boxes.clamp(0, 1) if self.param.prior_box_param.clip else boxes

    def _sizes(self) -> list[Extents]:
        """Width and height in pixels of the boxes around one place, in the top's order."""
        least = self.param.prior_box_param.min_size
        most = self.param.prior_box_param.max_size
        self._refuse("width", "height")
        if not least or min(least) < 1:
            said = f"is {min(least):g}" if least else "is missing"
            raise self._wrong("min_size", f"{said}; at least 1 would be")
        if len(most) not in (0, len(least)):
            counts = f"given {len(most)} time(s) beside {len(least)} min_size"
            raise self._wrong("max_size", f"{counts}; one for each, or none, would be")
        sizes: list[Extents] = []
        tf = self.param.prior_box_param.tf
        for index, size in enumerate(int(size) for size in least):
            if self.param.prior_box_param.use_default_aspect_ratio:
                if tf and size == _OF_TENSORFLOW:
                    self._smaller.append(len(sizes))
                sizes.append((float(size), float(size)))
            squares = []
            if most:
                if most[index] <= least[index]:
                    said = f"is {most[index]:g}; more than the min_size {least[index]:g}"
                    raise self._wrong("max_size", f"{said} would be")
                side = math.sqrt(size * int(most[index]))
                squares.append((side, side))
            others = [(size * math.sqrt(r), size / math.sqrt(r)) for r in self._ratios()]
            sizes += others + squares if tf else squares + others
        if not sizes:
            raise self._wrong("use_default_aspect_ratio", "leaves no box; an aspect_ratio would be")
        return sizes

    def _ratios(self) -> list[float]:
        """The aspect ratios beside the default, as they are given and, with `flip`, turned over."""
        settings = self.param.prior_box_param
        default = [1.0] if settings.use_default_aspect_ratio else []
        ratios = [*default]
        for ratio in settings.aspect_ratio:
            if ratio <= 0:
                raise self._wrong("aspect_ratio", f"is {ratio:g}; more than 0 would be")
            if all(abs(ratio - other) >= SAME_RATIO for other in ratios):
                ratios.append(ratio)
                if settings.flip and abs(ratio - 1) >= SAME_RATIO:
                    ratios.append(1 / ratio)
        return ratios[len(default) :]

    def _pair(self, both: str, high: str, wide: str) -> Extents | None:
        """What is given for height and width, as one field for both or as two; None if nothing."""
        settings = self.param.prior_box_param
        if settings.HasField(high) or settings.HasField(wide):
            if settings.HasField(both):
                raise self._wrong(both, f"is given beside {high} or {wide}; one of them would be")
            pair = getattr(settings, high), getattr(settings, wide)
        elif settings.HasField(both):
            pair = (getattr(settings, both),) * 2
        else:
            return None
        if min(pair) <= 0:
            name = both if settings.HasField(both) else (high, wide)[pair[0] > 0]
            raise self._wrong(name, f"is {min(pair):g}; more than 0 would be")
        return pair

    def _refuse(self, *fields: str) -> None:
        """Raise for fields of the other type."""
        for field in fields:
            if getattr(self.param.prior_box_param, field):
                raise self._wrong(field, "says nothing to this type; none would be")

    def _wrong(self, field: str, message: str) -> CaffeError:
        return self.error(f"{message} right", f"prior_box_param.{field}")


@layer_types.register("PriorBoxClustered")
class PriorBoxClustered(PriorBox):
    """The same, but each box has a width and a height of its own (OpenVINO's PriorBoxClustered)."""

    def _sizes(self) -> list[Extents]:
        settings = self.param.prior_box_param
        self._refuse("min_size", "max_size", "aspect_ratio", "tf")
        wide, high = list(settings.width), list(settings.height)
        if not wide or len(wide) != len(high):
            counts = f"{len(wide)} width(s) and {len(high)} height(s) are given"
            raise self._wrong("width", f"{counts}; as many of both would be")
        least = min(wide + high)
        if least <= 0:
            name = "width" if least in wide else "height"
            raise self._wrong(name, f"is {least:g}; more than 0 would be")
        return list(zip(wide, high, strict=True))
