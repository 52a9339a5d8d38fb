"""Images of a random size, or a random part of them, by the fields of Intel Caffe and of NVCaffe.

Both are in a `data_transformer.cpp`.

Random choices for a record depend only on the seed and the record's number, so that they are the
same however records are distributed over batches and ranks, and after a resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from caffe_dns.data.boxes import Size
from caffe_dns.data.datum import Image, channels_first
from caffe_dns.data.resizing import resize
from caffe_dns.data.sources import ImageSource
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import ResizeParameter, TransformationParameter
from caffe_dns.proto.fields import refuse_fields

Item = TypeVar("Item")

_FIELDS = ("random_resize_param", "random_aspect_ratio_param")
#: NVCaffe's, which go together.
_SIZES = ("img_rand_resize", "rand_resize_ratio", "vertical_stretch", "horizontal_stretch")
_BOUNDS = tuple(f"{size}_{end}" for size in _SIZES for end in ("lower", "upper"))
_HOW = ("interpolation_algo_down", "interpolation_algo_up", "allow_upscale")
#: Steps in which ratios are drawn.
_STEPS = 1000


def resizes(param: TransformationParameter) -> bool:
    """Whether images get a random size. Raises CaffeError, with the field, for what lacks."""
    given = [field for field in _FIELDS if param.HasField(field)]
    # Sizes of 0 are none; the other bounds count where they are given.
    given += [name for name in _BOUNDS if param.HasField(name) and getattr(param, name)][:1]
    if not given:
        return False
    place = f"transform_param.{given[0]}"
    if not param.crop_size:
        raise CaffeError("needs a crop_size", field=place)
    if param.HasField("mean_file"):
        raise CaffeError("has images of many sizes, so mean_value is needed", field=place)
    if len(given) > 1:
        raise CaffeError(f"cannot be combined with {given[1]}", field=place)
    for name in _SIZES:
        if getattr(param, f"{name}_lower") > getattr(param, f"{name}_upper"):
            what = f"is above {name}_upper"
            raise CaffeError(what, field=f"transform_param.{name}_lower")
    sizes, ratios = param.random_resize_param, param.random_aspect_ratio_param
    if sizes.max_size and sizes.min_size > sizes.max_size:
        raise CaffeError(f"min_size {sizes.min_size} is above max_size", field=place)
    if not 0 < ratios.min_area_ratio <= ratios.max_area_ratio <= 1:
        raise CaffeError("the ratios of areas have to lie between 0 and 1", field=place)
    if not 0 < ratios.aspect_ratio_change <= 1:
        raise CaffeError("aspect_ratio_change has to lie between 0 and 1", field=place)
    return True


def refuse_resizing(param: TransformationParameter) -> None:
    """Raise CaffeError, with the field, for what only Data and ImageData do to images."""
    refuse_fields(param, "transform_param", {"Data and ImageData": _FIELDS + _BOUNDS + _HOW})


class ResizedSource(ImageSource[tuple[int, Item]]):
    """The records of another source, with images of random sizes.

    `draws` gives the generator of a record by its number.
    """

    def __init__(
        self,
        source: ImageSource[Item],
        param: TransformationParameter,
        draws: Callable[[int], np.random.Generator],
    ) -> None:
        self._source = source
        self._param = param
        self._draws = draws
        self.same_channels = source.same_channels

    def fetch(self, record: int) -> tuple[int, Item]:
        return record, self._source.fetch(record)

    def fetch_all(self, records: Sequence[int]) -> list[tuple[int, Item]]:
        return list(zip(records, self._source.fetch_all(records), strict=True))

    def load(self, items: Sequence[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
        loaded = self._source.load([item for _, item in items])
        return zip((record for record, _ in items), loaded, strict=True)

    def decode(self, item: tuple[int, Item]) -> tuple[Image, int]:
        record, stored = item
        image, label = self._source.decode(stored)
        if image.dtype != np.uint8:
            raise CaffeError("has float_data, which cannot be resized")
        draws = self._draws(record)
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
        if self._param.HasField("random_resize_param"):
            return channels_first(self._by_size(pixels, draws)), label
        if not self._param.HasField("random_aspect_ratio_param"):
            return channels_first(self._by_stretch(pixels, draws)), label
        return channels_first(self._by_ratio(pixels, draws)), label

    def is_encoded(self, item: tuple[int, Item]) -> bool:
        return True

    def explain(self, error: CaffeError, record: int) -> CaffeError:
        return self._source.explain(error, record)

    def close(self) -> None:
        self._source.close()

    def _by_size(self, image: Image, draws: np.random.Generator) -> Image:
        """The whole image, its shorter side of a length from min_size to max_size."""
        settings = self._param.random_resize_param
        least = settings.min_size or min(image.shape[:2])
        most = settings.max_size or max(image.shape[:2])
        shorter = int(draws.integers(max(most - least, 0) + 1)) + least
        return _to_shorter(image, shorter, settings.resize_param, draws)

    def _by_ratio(self, image: Image, draws: np.random.Generator) -> Image:
        """A part of the image, brought to the crop's size; the whole if no part is found."""
        settings, crop = self._param.random_aspect_ratio_param, self._param.crop_size
        height, width = image.shape[:2]
        change = settings.aspect_ratio_change
        for _ in range(settings.max_attempt):
            area = _ratio(settings.min_area_ratio, settings.max_area_ratio, draws) * height * width
            aspect = _ratio(change, 1 / change, draws)
            size = int(math.sqrt(area) * aspect), int(math.sqrt(area) / aspect)
            if _ratio(0, 1, draws) < 0.5:
                size = size[::-1]
            if 0 < size[0] <= height and 0 < size[1] <= width:
                top = int(draws.integers(height - size[0] + 1))
                left = int(draws.integers(width - size[1] + 1))
                part = image[top : top + size[0], left : left + size[1]]
                return _to_size(part, (crop, crop), settings.resize_param, draws)
        return _to_shorter(image, crop, settings.resize_param, draws)

    def _by_stretch(self, image: Image, draws: np.random.Generator) -> Image:
        """The whole image: its shorter side, then the longer one, then both stretched (NVCaffe)."""
        param = self._param
        old = image.shape[:2]
        shorter = min(old)
        if param.img_rand_resize_lower and param.img_rand_resize_upper:
            most = param.img_rand_resize_upper - param.img_rand_resize_lower
            shorter = param.img_rand_resize_lower + int(draws.integers(most + 1))
        # In float32, as there.
        sides = np.float32(old) * (np.float32(shorter) / np.float32(min(old)))
        if param.rand_resize_ratio_lower >= 1 and param.rand_resize_ratio_upper > 1:
            axis = int(sides[1] > sides[0]) if sides[0] != sides[1] else int(draws.integers(2))
            sides[axis] = sides[1 - axis] * self._drawn("rand_resize_ratio", draws)
        for axis, name in enumerate(("vertical_stretch", "horizontal_stretch")):
            sides[axis] *= self._drawn(name, draws)
        size = [max(param.crop_size, int(side + 0.5)) for side in sides.tolist()]
        if not param.allow_upscale:
            size = [min(side, most) for side, most in zip(size, old, strict=True)]
        if tuple(size) == old:
            return image
        smaller = all(side <= most for side, most in zip(size, old, strict=True))
        how = param.interpolation_algo_down if smaller else param.interpolation_algo_up
        import cv2  # here, because importing it takes long and most runs do not need it

        resized = cv2.resize(image, size[::-1], interpolation=how)
        return resized.reshape(*resized.shape[:2], -1)

    def _drawn(self, name: str, draws: np.random.Generator) -> np.float32:
        """A number between two bounds; 1 where the lower one is not positive."""
        least, most = (getattr(self._param, f"{name}_{end}") for end in ("lower", "upper"))
        return np.float32(least + (most - least) * draws.random()) if least > 0 else np.float32(1)


def _to_shorter(
    image: Image, shorter: int, param: ResizeParameter, draws: np.random.Generator
) -> Image:
    """The image with a shorter side of that length, and the other in proportion."""
    height, width = image.shape[:2]
    if height < width:
        size = shorter, int(np.float32(width) / np.float32(height) * np.float32(shorter))
    else:
        size = int(np.float32(height) / np.float32(width) * np.float32(shorter)), shorter
    return _to_size(image, size, param, draws)


def _to_size(image: Image, size: Size, param: ResizeParameter, draws: np.random.Generator) -> Image:
    own = ResizeParameter()
    own.CopyFrom(param)
    own.height, own.width = size
    return resize(image, own, draws)


def _ratio(least: float, most: float, draws: np.random.Generator) -> float:
    return (int(draws.integers(int((most - least) * _STEPS + 1))) + least * _STEPS) / _STEPS
