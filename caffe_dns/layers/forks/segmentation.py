"""Segmentation: ImageSegData and SegAccuracy of DeepLab, HED's ImageLabelmapData."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.data.datum import Image
from caffe_dns.data.image_files import read_image, read_lines, resized, whole_number
from caffe_dns.data.random_resizing import refuse_resizing
from caffe_dns.data.transform import Transform, refuse_of_others
from caffe_dns.errors import CaffeError, shortened
from caffe_dns.layers import image_data
from caffe_dns.layers.base import Layer, Shape, layer_types
from caffe_dns.layers.checks import check_sides
from caffe_dns.layers.forks.labelled_images import LabelledImageLayer
from caffe_dns.proto.caffe_pb2 import TRAIN, ImageDataParameter, TransformationParameter

_FIELD = "image_data_param"


@dataclass(frozen=True)
class LabelledImages:
    """Reads an image and its labels, grown, filled up, cropped and mirrored alike."""

    #: Names of images, and what stands behind them.
    lines: Sequence[tuple[str, str]]
    settings: ImageDataParameter
    transform: TransformationParameter
    train: bool

    def __len__(self) -> int:
        return len(self.lines)

    def read(self, index: int, draw: Sequence[int]) -> tuple[Image, ...]:
        """The image [C, H, W], its labels [1, H, W], and its rows and columns [1, 1, 2]."""
        import cv2  # here, because importing it takes long and most runs do not need it

        name = self.settings.root_folder + self.lines[index][0]
        whole = read_image(name, color=self.settings.is_color)
        image = resized(whole, self.settings.new_height, self.settings.new_width)
        labels = self._labels(index, image.shape[:2])
        factors = self.transform.scale_factors
        if factors:
            factor = factors[(draw[0] >> 1) % len(factors)]
            side = int(image.shape[1] * factor), int(image.shape[0] * factor)
            if min(side) < 1:
                what = f"{factor:g} leaves nothing of an image of {image.shape[:2]} (height, width)"
                raise CaffeError(what, field="transform_param.scale_factors")
            if side != (image.shape[1], image.shape[0]):
                image = cv2.resize(image, side)
                labels = cv2.resize(labels, side, interpolation=cv2.INTER_NEAREST)
        image = image.reshape(*image.shape[:2], -1).astype(np.float32)
        image, labels = self._cropped(image, labels, draw)
        if self.transform.mirror and draw[0] & 1:
            image, labels = image[:, ::-1], labels[:, ::-1]
        extents = np.minimum(whole.shape[:2], image.shape[:2]).reshape(1, 1, 2)
        return image.transpose(2, 0, 1), labels[None], extents

    def _labels(self, index: int, shape: tuple[int, ...]) -> Image:
        settings, told = self.settings, self.lines[index][1]
        if settings.label_type == ImageDataParameter.PIXEL:
            name = settings.root_folder + told
            labels = read_image(name, settings.new_height, settings.new_width, color=False)
            if labels.shape != shape:
                what = f"has {labels.shape} labels; {shape} would be right (height, width)"
                raise CaffeError(what, file=name)
            return labels
        label = settings.ignore_label
        if settings.label_type == ImageDataParameter.IMAGE:
            label = int(told)
        return np.full(shape, label & 255, np.uint8)

    def _cropped(self, image: Image, labels: Image, draw: Sequence[int]) -> tuple[Image, Image]:
        """The crop, filled up with the mean and with ignore_label at the bottom and the right."""
        height, width = crop_of(self.transform)
        if not height:
            return image, labels
        more = max(height - len(image), 0), max(width - image.shape[1], 0)
        if any(more):
            mean = np.zeros(image.shape[2], np.float32)
            mean[:] = list(self.transform.mean_value) or 0
            filled = np.empty(
                (len(image) + more[0], image.shape[1] + more[1], len(mean)), np.float32
            )
            filled[:] = mean
            filled[: len(image), : image.shape[1]] = image
            told = np.full(filled.shape[:2], self.settings.ignore_label & 255, np.uint8)
            told[: len(image), : image.shape[1]] = labels
            image, labels = filled, told
        spare = len(image) - height, image.shape[1] - width
        top, left = spare[0] // 2, spare[1] // 2
        if self.train:
            top, left = draw[1] % (spare[0] + 1), draw[2] % (spare[1] + 1)
        cut = slice(top, top + height), slice(left, left + width)
        return image[cut], labels[cut]


class EdgeMaps(LabelledImages):
    """Reads an image and a map of the edges in it, grown, cropped and mirrored alike."""

    def read(self, index: int, draw: Sequence[int]) -> tuple[Image, ...]:
        """The image [C, H, W] and how much of an edge there is, [1, H, W], from 0 to 1."""
        image, labels, _ = super().read(index, draw)
        shares = labels.astype(np.float32) / 255
        return image, np.where(shares > 0.5, np.float32(1), shares)

    def _cropped(self, image: Image, labels: Image, draw: Sequence[int]) -> tuple[Image, Image]:
        side = self.transform.crop_size
        if side > min(labels.shape):
            what = f"is {side}, too large for an image of {labels.shape} (height, width)"
            raise CaffeError(what, field="transform_param.crop_size")
        return super()._cropped(image, labels, draw)


def _is_label(word: str) -> bool:
    try:
        whole_number(word)
    except ValueError:
        return False
    return word.removeprefix("-").isdecimal()


def crop_of(transform: TransformationParameter) -> tuple[int, int]:
    """Height and width of the crop; 0 without one."""
    if transform.HasField("crop_size"):
        return transform.crop_size, transform.crop_size
    return transform.crop_height, transform.crop_width


@layer_types.register("ImageSegData")
class ImageSegData(LabelledImageLayer):
    """Images and images of labels in the order of the list, or shuffled anew in each round.

    A line of the list has an image and its labels: a file (PIXEL), one number for all pixels
    (IMAGE), or nothing (NONE). Tops N x C x H x W, N x 1 x H x W and, if asked for, N x 1 x 1 x 2
    with the rows and columns of each file, up to those of the first top
    (`image_seg_data_layer.cpp`). While training, crops are anywhere, else in the middle.
    """

    tops = (2, 3)
    #: What reads the images.
    read_by: ClassVar[type[LabelledImages]] = LabelledImages

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings, transform = self.settings, self.param.transform_param
        self.batch_size = settings.batch_size
        self.check_batch_size(f"{_FIELD}.batch_size")
        self._check(settings, transform)
        plain = TransformationParameter()
        plain.CopyFrom(transform)
        for name in ("crop_size", "crop_height", "crop_width", "scale_factors", "mirror"):
            plain.ClearField(name)
        self.transform = Transform(plain, self.param.phase)
        # Means are looked at before the first image, which may be filled up with them.
        self.transform.output_shape((3 if settings.is_color else 1, 1, 1))
        log.info(f"Opening file {settings.source}")
        lines = self._read_list(settings)
        self.images = self.read_by(lines, settings, transform, self.param.phase == TRAIN)
        log.info(f"A total of {len(self.images)} images.")
        self.size_by(self.read_first())

    @property
    def settings(self) -> ImageDataParameter:
        return self.param.image_data_param

    def _read_list(self, settings: ImageDataParameter) -> list[tuple[str, str]]:
        lines = []
        for number, line in enumerate(read_lines(settings.source), 1):
            name, told = [*line.split(), "", ""][:2]
            if settings.label_type == ImageDataParameter.IMAGE and not _is_label(told):
                what = f"is no image and a number: {shortened(line)}"
                raise CaffeError(what, file=settings.source, line=number)
            if not name or (settings.label_type == ImageDataParameter.PIXEL and not told):
                what = f"is no image and its labels: {shortened(line)}"
                raise CaffeError(what, file=settings.source, line=number)
            lines.append((name, told))
        if not lines:
            raise CaffeError("lists no images", file=settings.source)
        return lines

    def _check(self, settings: ImageDataParameter, transform: TransformationParameter) -> None:
        image_data.refuse_of_others(self.param.image_data_param, self.type)
        refuse_resizing(transform)
        refuse_of_others(transform, self.type)
        if not settings.source:
            raise self.error("must name a list of images", f"{_FIELD}.source")
        check_sides(self, _FIELD, "new")
        check_sides(self, "transform_param", "crop")
        if transform.HasField("crop_size") and transform.crop_height:
            raise self.error("give either crop_size or crop_height", "transform_param.crop_size")
        if transform.HasField("mean_file"):
            raise self.error("takes mean_value only", "transform_param.mean_file")
        if min(transform.scale_factors, default=1) <= 0:
            raise self.error("must be positive", "transform_param.scale_factors")


@layer_types.register("ImageLabelmapData")
class ImageLabelmapData(ImageSegData):
    """Images and maps of the edges in them, in the order of the list or shuffled in each round.

    A line of the list has an image and its map. Tops N x C x H x W and N x 1 x H x W: a map's
    values are divided by 255, and more than a half counts as 1
    (`image_labelmap_data_layer.cpp` of RCF).
    """

    tops = (2, 2)
    read_by = EdgeMaps

    @property
    def settings(self) -> ImageDataParameter:
        settings = ImageDataParameter()
        settings.CopyFrom(self.param.image_data_param)
        settings.label_type = ImageDataParameter.PIXEL
        return settings


@layer_types.register("SegAccuracy")
class SegAccuracy(Layer):
    """Shares of right pixels: of all, the mean over classes, and of intersections in unions.

    Bottoms: scores N x C x H x W and labels N x 1 x H x W; top 1 x 1 x 1 x 3. The second share is
    of the classes that are there, the third of all, 1 for one that is neither there nor guessed. Of
    equal scores the last class counts (`seg_accuracy_layer.cpp`). Without `reset`, passes add up.
    """

    bottoms = (2, 2)
    no_force_backward = (0, 1)
    #: Pixels by their class, and by what they were taken for, C x C.
    counts: Tensor | None = None

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        scores, labels = map(tuple, bottom_shapes)
        if len(scores) != 4 or labels != (scores[0], 1, *scores[2:]):
            raise self.error(f"labels of {labels} do not fit scores of {scores}", "bottom")
        return [(1, 1, 1, 3)]

    @torch.no_grad()
    def forward(self, *bottoms: Tensor) -> Tensor:
        settings = self.param.seg_accuracy_param
        classes = bottoms[0].shape[1]
        labels = bottoms[1].long().flatten()
        ignored = torch.tensor(list(settings.ignore_label), device=labels.device).long()
        counted = ~torch.isin(labels, ignored)
        labels = labels[counted]
        wrong = labels[(labels < 0) | (labels >= classes)]
        if len(wrong):
            raise self.error(
                f"label {int(wrong[0])} is out of range; 0 to {classes - 1} would be right, or one "
                "of ignore_label",
                "bottom",
            )
        guessed = classes - 1 - bottoms[0].flip(1).argmax(1).flatten()[counted]
        counts = torch.bincount(labels * classes + guessed, minlength=classes**2)
        if self.counts is not None and not settings.reset:
            counts = counts + self.counts
        self.counts = counts
        return self._shares(counts.view(classes, classes).double()).to(bottoms[0].dtype)

    @staticmethod
    def _shares(counts: Tensor) -> Tensor:
        right, there, guessed = counts.diagonal(), counts.sum(1), counts.sum(0)
        total = right.sum() / counts.sum().clamp(min=1)
        found = (right / there.clamp(min=1)).sum() / (there > 0).sum().clamp(min=1)
        union = there + guessed - right
        shared = torch.where(union > 0, right / union.clamp(min=1), 1).mean()
        return torch.stack([total, found, shared]).view(1, 1, 1, 3)
