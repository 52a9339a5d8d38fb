"""What AnnotatedData does to an image and the boxes in it, before mean and scale.

In SSD's order: colours are distorted, a frame is put around the image, a part is cut out; then it
is resized, given noise, cropped and mirrored (`annotated_data_layer.cpp`, `data_transformer.cpp`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from caffe_dns import log
from caffe_dns.data.annotated_datum import Annotated
from caffe_dns.data.box_samplers import check_sampler, draw_jitter, draw_parts
from caffe_dns.data.boxes import Boxes, Size, clip
from caffe_dns.data.datum import Image
from caffe_dns.data.image_effects import (
    add_noise,
    check_distortion,
    check_noise,
    distort,
    in_ssd_form,
    is_of_deepdetect,
)
from caffe_dns.data.resizing import check_resize, count_by_scale, new_size, resize, resize_boxes
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import TRAIN, BatchSampler, ResizeParameter, TransformationParameter

#: Frames that would make an image less than this much larger are none.
_LEAST_EXPANSION = 0.01


class AnnotatedTransform:
    """The settings of a `transform_param`, and the samplers of an `annotated_data_param`."""

    def __init__(
        self,
        param: TransformationParameter,
        samplers: Sequence[BatchSampler],
        phase: int,
        jitter: float = 0,
    ) -> None:
        self.param = param
        #: Sizes to bring images to, of which each has one.
        self.sizes = list(param.resize_param)
        self._samplers = list(samplers)
        self._jitter = jitter
        self._random_crop = phase == TRAIN
        with _within("transform_param.distort_param"):
            self._distortion = in_ssd_form(param.distort_param)
        #: DeepDetect distorts colours before the frame and again after resizing.
        self._distorts_twice = is_of_deepdetect(param.distort_param)
        self._constraint = param.emit_constraint if param.HasField("emit_constraint") else None
        self.crop = (param.crop_h, param.crop_w)
        if param.crop_size:
            self.crop = (param.crop_size, param.crop_size)
        if bool(self.crop[0]) != bool(self.crop[1]):
            raise CaffeError("crop_h and crop_w must be given together", field="transform_param")

    def check(self, channels: int) -> None:
        """Raise CaffeError, with the field, for what cannot be done to images like these."""
        param = self.param
        for size in self.sizes:
            check_resize(size, "transform_param.resize_param")
            with _within("transform_param.resize_param"):
                _check_values(size.pad_value, channels, "pad_value")
        if len(self.sizes) == 1:
            _warn_of_prob("resize_param", self.sizes[0].prob)
        if param.HasField("distort_param"):
            with _within("transform_param.distort_param"):
                check_distortion(self._distortion, channels)
        if param.HasField("noise_param"):
            with _within("transform_param.noise_param"):
                check_noise(param.noise_param, channels)
            noise = param.noise_param
            if noise.HasField("prob") and not noise.HasField("all_effects"):
                _warn_of_prob("noise_param", param.noise_param.prob)
        if param.HasField("expand_param"):
            with _within("transform_param"):
                self._check_expansion(channels)
        for sampler in self._samplers:
            with _within("annotated_data_param.batch_sampler"):
                check_sampler(sampler)

    def _check_expansion(self, channels: int) -> None:
        if self.param.expand_param.max_expand_ratio <= 1:
            raise CaffeError("must be more than 1", field="expand_param.max_expand_ratio")
        if self.param.HasField("mean_file"):
            raise CaffeError("fills with mean_value, not with a mean_file", field="expand_param")
        _check_values(self.param.mean_value, channels, "mean_value")

    @property
    def varies_size(self) -> bool:
        """Whether images of one batch may come out in several sizes."""
        modes = {size.resize_mode for size in self.sizes}
        return ResizeParameter.FIT_SMALL_SIZE in modes and not self.crop[0]

    def output_size(self, size: Size) -> Size:
        """The size (height, width) that an image of this one comes out with. Raises CaffeError.

        Of several sizes to resize to, by the first.
        """
        if self.sizes:
            size = new_size(size, self.sizes[0])
        return self._cropped_size(size)

    def _cropped_size(self, size: Size) -> Size:
        height, width = self.crop
        if height > size[0] or width > size[1]:
            raise CaffeError(
                f"a crop of {height}x{width} is larger than an image of {size[0]}x{size[1]} "
                "(height, width)",
                field="transform_param.crop_size",
            )
        return self.crop if height else size

    def apply(self, record: Annotated, draws: np.random.Generator, which: int = 0) -> Annotated:
        """The record as a net is to see it, in that one of `sizes`. Raises CaffeError."""
        size = self.sizes[which] if self.sizes else None
        param = self.param
        if record.image.dtype != np.uint8 and (
            param.HasField("distort_param") or param.HasField("noise_param")
        ):
            raise CaffeError(
                "distort_param and noise_param take images of bytes, not float_data",
                field="transform_param",
            )
        if param.HasField("distort_param"):
            image = distort(record.image, self._distortion, draws)
            record = replace(record, image=image)
        if param.HasField("expand_param"):
            record = self._expand(record, draws)
        if self._samplers or not self._jitter:
            parts = draw_parts(self._samplers, record.objects.boxes, draws)
        else:
            padded = size is not None and size.resize_mode == ResizeParameter.FIT_LARGE_SIZE_AND_PAD
            parts = [draw_jitter(self._jitter, draws, square=padded)]
        if parts:
            record = self._cut_out(record, clip(parts[int(draws.integers(len(parts)))]))
        return self._finish(record, draws, size)

    def _expand(self, record: Annotated, draws: np.random.Generator) -> Annotated:
        """A frame around the image, as often as asked for (`ExpandImage`)."""
        expand = self.param.expand_param
        if draws.uniform() > expand.prob or expand.max_expand_ratio - 1 < _LEAST_EXPANSION:
            return record
        ratio = np.float32(draws.uniform(1, expand.max_expand_ratio))
        height, width = record.size
        wide = int(height * ratio), int(width * ratio)
        top, left = (int(draws.uniform(0, w - n)) for w, n in zip(wide, record.size, strict=True))
        image = np.empty((*wide, record.image.shape[2]), record.image.dtype)
        colour = np.rint(np.resize(list(self.param.mean_value) or [0.0], image.shape[2]))
        image[:] = np.clip(colour, 0, 255)
        image[top : top + height, left : left + width] = record.image
        frame = np.array([-left, -top, wide[1] - left, wide[0] - top], np.float32)
        part = frame / np.array([width, height] * 2, np.float32)
        objects = record.objects.seen_in(part, self._constraint)
        return replace(record, image=image, objects=objects)

    def _cut_out(self, record: Annotated, part: Boxes) -> Annotated:
        """A part of the image [4], in whole pixels (`CropImage`)."""
        height, width = record.size
        corners = part * np.array([width, height] * 2, np.float32)
        left, top = corners[:2].astype(int)
        wide, high = np.maximum((corners[2:] - corners[:2]).astype(int), 1)
        image = record.image[top : top + high, left : left + wide]
        objects = record.objects.seen_in(part, self._constraint)
        return replace(record, image=image, objects=objects)

    def _finish(
        self, record: Annotated, draws: np.random.Generator, wanted: ResizeParameter | None
    ) -> Annotated:
        param, image, objects, size = self.param, record.image, record.objects, record.size
        mirrored = param.mirror and bool(draws.integers(2))
        if wanted is not None:
            image = resize(image, wanted, draws)
            objects = objects.with_boxes(resize_boxes(objects.boxes, size, wanted))
        if self._distorts_twice:
            image = distort(image, self._distortion, draws)
        if param.HasField("noise_param"):
            image = add_noise(image, param.noise_param, draws)
        image, part = self._crop(image, draws)
        objects = objects.seen_in(part, self._constraint)
        if mirrored:
            image, objects = image[:, ::-1], objects.mirrored()
        if wanted is not None:
            boxes = count_by_scale(objects.boxes, size, part, wanted)
            objects = objects.with_boxes(boxes)
        return replace(record, image=image, objects=objects)

    def _crop(self, image: Image, draws: np.random.Generator) -> tuple[Image, Boxes]:
        """The crop, and which part of the image it is."""
        height, width = image.shape[:2]
        size = self._cropped_size((height, width))
        spare = height - size[0], width - size[1]
        if self._random_crop:
            top, left = (int(draws.integers(extent + 1)) for extent in spare)
        else:
            top, left = spare[0] // 2, spare[1] // 2
        bottom, right = top + size[0], left + size[1]
        part = np.array([left / width, top / height, right / width, bottom / height], np.float32)
        return image[top:bottom, left:right], part


@contextmanager
def _within(message: str) -> Iterator[None]:
    """Put the message's name before the fields of errors."""
    try:
        yield
    except CaffeError as error:
        raise CaffeError(error.message, field=f"{message}.{error.field}") from None


def _warn_of_prob(field: str, prob: float) -> None:
    if prob != 1:
        log.warning(f"transform_param.{field}.prob has no effect, as in SSD's fork")


def _check_values(values: Sequence[float], channels: int, field: str) -> None:
    if len(values) not in (0, 1, channels):
        raise CaffeError(
            f"is given {len(values)} times for images of {channels} channel(s); give one value, or "
            "one for each channel",
            field=field,
        )
