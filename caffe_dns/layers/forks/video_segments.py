"""VideoSegments, TSN's VideoData: a clip of each segment of a video, as channels of one image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from caffe_dns import log, rng
from caffe_dns.data.clips import Clip, read_clips, stacked
from caffe_dns.data.datum import Image
from caffe_dns.data.image_files import read_image
from caffe_dns.data.random_resizing import refuse_resizing
from caffe_dns.data.transform import Transform, refuse_of_others
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.checks import check_positive, check_sides
from caffe_dns.layers.forks.labelled_images import LabelledImageLayer
from caffe_dns.proto.caffe_pb2 import TRAIN, TransformationParameter, VideoDataParameter

_FIELD = "video_data_param"
#: Shares of the shorter side where `scale_ratios` says nothing.
_RATIOS = (1, 0.875, 0.75, 0.66)
#: A side that differs by fewer pixels from the crop's is that.
_NEAR = 3
#: Places of crops, in quarters of the rows and columns left: corners and the middle, and with
#: `more_fix_crop` the middles of the sides and of the quarters.
_PLACES = ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))
_MORE_PLACES = ((0, 2), (4, 2), (2, 0), (2, 4), (1, 1), (1, 3), (3, 1), (3, 3))
_PATTERNS = {VideoDataParameter.RGB: "image_%04d.jpg", VideoDataParameter.FLOW: "flow_%c_%04d.jpg"}


@dataclass(frozen=True)
class SegmentReader:
    """Reads the clips of a video, all frames cropped and mirrored alike."""

    videos: Sequence[Clip]
    settings: VideoDataParameter
    transform: TransformationParameter
    train: bool

    def __len__(self) -> int:
        return len(self.videos)

    def read(self, index: int, draw: Sequence[int]) -> tuple[Image, ...]:
        """All planes, in the order of part, frame and channel [C, H, W], and the label [1, 1, 1].

        `draw` has three numbers, of which there are made as many as are wanted.
        """
        video = self.videos[index]
        draws = rng.numpy_generator(draw[0], f"segments/{draw[1]}", draw[2])
        frames = [
            plane
            for first in self._starts(video, draws)
            for number in range(first + 1, first + 1 + self.settings.new_length)
            for plane in self._planes(video.name, number)
        ]
        pixels = self._cropped(stacked(frames, video.name), draws)
        if self.transform.mirror and draws.integers(2):
            pixels = pixels[..., ::-1].copy()
            if self.transform.is_flow:
                pixels[::2] = 255 - pixels[::2]
        return pixels, np.full((1, 1, 1), video.label)

    def _starts(self, video: Clip, draws: np.random.Generator) -> Iterator[int]:
        """How many frames stand before the clip of each part."""
        length = video.number // self.settings.num_segments
        spare = length - self.settings.new_length + 1
        for part in range(self.settings.num_segments):
            if spare < 1:
                yield 0
            elif self.train:
                yield part * length + int(draws.integers(spare))
            else:
                yield part * length + spare // 2

    def _planes(self, folder: str, number: int) -> Iterator[Image]:
        settings = self.settings
        pattern = settings.name_pattern or _PATTERNS[settings.modality]
        if settings.modality == VideoDataParameter.FLOW:
            names, color = [pattern % (axis, number) for axis in "xy"], False
        else:
            names, color = [pattern % number], not settings.grayscale
        for name in names:
            image = read_image(
                f"{folder}/{name}", settings.new_height, settings.new_width, color=color
            )
            yield from image.reshape(*image.shape[:2], -1).transpose(2, 0, 1)

    def _cropped(self, planes: Image, draws: np.random.Generator) -> Image:
        import cv2  # here, because importing it takes long and most runs do not need it

        size = self.transform.crop_size
        if not size:
            return planes
        extents = planes.shape[1:]
        if min(extents) < size:
            raise CaffeError(
                f"crop_size {size} is larger than a frame of {extents[0]}x{extents[1]}",
                field="transform_param.crop_size",
            )
        shape, top, left = (size, size), (extents[0] - size) // 2, (extents[1] - size) // 2
        if self.train:
            if self.transform.multi_scale:
                shapes = self._shapes(min(extents))
                shape = shapes[draws.integers(len(shapes))]
            top, left = self._place(extents[0] - shape[0], extents[1] - shape[1], draws)
        planes = planes[:, top : top + shape[0], left : left + shape[1]]
        if shape == (size, size):
            return planes
        return np.stack([cv2.resize(plane, (size, size)) for plane in planes])

    def _shapes(self, shorter: int) -> list[tuple[int, int]]:
        """Rows and columns of crops that may be taken."""
        size = self.transform.crop_size
        sides = [int(shorter * ratio) for ratio in self.transform.scale_ratios or _RATIOS]
        sides = [size if abs(side - size) < _NEAR else side for side in sides]
        if min(sides) < 1:
            raise CaffeError(
                f"leaves nothing of a frame's {shorter} rows or columns",
                field="transform_param.scale_ratios",
            )
        most = self.transform.max_distort
        return [
            (height, width)
            for row, height in enumerate(sides)
            for column, width in enumerate(sides)
            if abs(row - column) <= most
        ]

    def _place(self, rows: int, columns: int, draws: np.random.Generator) -> tuple[int, int]:
        if not self.transform.fix_crop:
            return int(draws.integers(rows + 1)), int(draws.integers(columns + 1))
        places = _PLACES + _MORE_PLACES if self.transform.more_fix_crop else _PLACES
        down, right = places[draws.integers(len(places))]
        return down * (rows // 4), right * (columns // 4)


@layer_types.register("VideoSegments")
class VideoSegments(LabelledImageLayer):
    """Clips N x C x H x W and labels N x 1 x 1 x 1, in the order of the list or shuffled.

    A line of the list has the folder of a video, how many frames it has, and its label. There are
    `new_length` frames of each of `num_segments` parts, three planes each, or two of optical flow:
    from anywhere while training, else from the middle (`video_data_layer.cpp`, of TSN).
    """

    tops = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings, transform = self.settings, self.param.transform_param
        self.batch_size = settings.batch_size
        self.check_batch_size(f"{_FIELD}.batch_size")
        self._check(settings, transform)
        log.info(f"Opening file: {settings.source}")
        self.images = SegmentReader(
            read_clips(settings.source), settings, transform, self.param.phase == TRAIN
        )
        log.info(f"A total of {len(self.images)} videos.")
        first = self.read_first()
        self.transform = Transform(self._plain(transform, len(first[0])), self.param.phase)
        self.size_by(first)

    @property
    def settings(self) -> VideoDataParameter:
        return self.param.video_data_param

    @staticmethod
    def _plain(transform: TransformationParameter, planes: int) -> TransformationParameter:
        """What is done after cropping: means, those of a frame for all, and scale."""
        plain = TransformationParameter(scale=transform.scale)
        means = list(transform.mean_value)
        if len(means) > 1 and planes % len(means) == 0:
            means *= planes // len(means)
        plain.mean_value[:] = means
        return plain

    def _check(self, settings: VideoDataParameter, transform: TransformationParameter) -> None:
        refuse_resizing(transform)
        refuse_of_others(transform, "VideoData, of TSN")
        if not settings.source:
            raise self.error("must name a list of videos", f"{_FIELD}.source")
        check_positive(self, _FIELD, ("new_length", "num_segments"))
        for name in (
            "use_image",
            "use_temporal_jitter",
            "sampling_rate",
            "root_folder",
            "rand_skip",
        ):
            if settings.HasField(name):
                raise self.error(
                    "is no field of TSN's VideoData, or not read there", f"{_FIELD}.{name}"
                )
        check_sides(self, _FIELD, "new")
        if transform.HasField("mean_file"):
            raise self.error("takes mean_value only", "transform_param.mean_file")
        if (
            min(transform.scale_ratios, default=1) <= 0
            or max(transform.scale_ratios, default=1) > 1
        ):
            raise self.error("must be positive and at most 1", "transform_param.scale_ratios")
        pattern = settings.name_pattern
        if pattern:
            try:
                pattern % (("x", 1) if settings.modality == VideoDataParameter.FLOW else 1)
            except (TypeError, ValueError):
                raise self.error(
                    f"'{pattern}' is no pattern such as {_PATTERNS[settings.modality]}",
                    f"{_FIELD}.name_pattern",
                ) from None
