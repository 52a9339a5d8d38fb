"""DenseImageData of SegNet and ENet: images with a label for each pixel, from pairs of files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.data.batches import Share
from caffe_dns.data.datum import Image, channels_first
from caffe_dns.data.image_files import read_image, read_words
from caffe_dns.data.random_resizing import refuse_resizing
from caffe_dns.data.sources import Order
from caffe_dns.data.transform import Cut, RecordDraws, Transform
from caffe_dns.data.workers import Workers, reading_threads
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape, layer_types
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.proto.caffe_pb2 import DenseImageDataParameter

_FIELD = "dense_image_data_param"
_WHOLE = Cut(0, 0, False)


class LabelledReader(Protocol):
    """Reads images with their labels by their place in a list."""

    def read(self, index: int, draw: Sequence[int]) -> tuple[Image, ...]:
        """The image at `index` as [C, H, W], its labels as [1, H, W], and what else there is.

        `draw` has three random numbers. Raises CaffeError for files that cannot be used.
        """
        ...


@dataclass(frozen=True)
class PairReader:
    """Reads one image and its labels, cropped and mirrored alike, as the settings say."""

    pairs: Sequence[tuple[str, str]]
    settings: DenseImageDataParameter

    def read(self, index: int, draw: Sequence[int]) -> tuple[Image, ...]:
        """The pair at `index` of the list as [C, H, W] and [1, H, W]; `draw` has three numbers.

        Raises CaffeError for files that cannot be read and for labels of another size.
        """
        settings, factor = self.settings, self.settings.label_divide_factor
        names = [settings.root_folder + name for name in self.pairs[index]]
        height, width = settings.new_height, settings.new_width
        image = read_image(names[0], height, width, color=settings.is_color)
        labels = read_image(names[1], height // factor, width // factor, color=False, nearest=True)
        wanted = (image.shape[0] // factor, image.shape[1] // factor)
        if labels.shape != wanted:
            raise CaffeError(
                f"has {labels.shape[0]} x {labels.shape[1]} labels; {wanted[0]} x {wanted[1]} "
                f"would be right for {names[0]}",
                file=names[1],
            )
        if settings.mirror and draw[0] & 1:
            image, labels = image[:, ::-1], labels[:, ::-1]
        if settings.crop_height:
            image, labels = (self._crop(each, draw, names[0]) for each in (image, labels))
        return channels_first(image), labels[None]

    def _crop(self, image: Image, draw: Sequence[int], name: str) -> Image:
        height, width = self.settings.crop_height, self.settings.crop_width
        spare = image.shape[0] - height, image.shape[1] - width
        if min(spare) < 0:
            raise CaffeError(
                f"is {image.shape[0]} x {image.shape[1]}, smaller than the crop of {height} x "
                f"{width} (height, width)",
                file=name,
            )
        top, left = draw[1] % (spare[0] + 1), draw[2] % (spare[1] + 1)
        return image[top : top + height, left : left + width]


@dataclass(frozen=True)
class DenseBatch:
    """Images [N, C, H, W], labels [N, 1, H, W] and what else there is, in host memory."""

    parts: Sequence[Tensor]

    def tops(self, device: torch.device) -> Sequence[Tensor]:
        return [part.to(device, non_blocking=True) for part in self.parts]


class DenseBatches:
    """The batches of one layer, one after the other."""

    def __init__(
        self,
        pairs: LabelledReader,
        transform: Transform,
        order: Order,
        draws: RecordDraws,
        share: Share,
        batch_size: int,
        *,
        skip: int,
        for_gpu: bool,
    ) -> None:
        self._pairs = pairs
        self._transform = transform
        self._order = order
        self._draws = draws
        self._numbers = share.batches(batch_size)
        self._skip = skip
        self._workers = Workers(reading_threads(for_gpu=for_gpu))

    def read(self) -> DenseBatch:
        """The next batch. Raises CaffeError for files that cannot be used."""
        numbers = next(self._numbers)
        draws = self._draws.of(numbers).tolist()

        def make(at: int) -> tuple[Image, ...]:
            index = self._order.index(int(numbers[at]) + self._skip)
            return self._pairs.read(index, draws[at])

        pairs = self._workers.map(make, len(numbers))
        shapes = {pair[0].shape for pair in pairs}
        if len(shapes) > 1:
            first, second = sorted(shapes)[:2]
            raise CaffeError(
                f"images of {first} and {second} (channels, height, width) in one batch; give a "
                "crop, a new size, or a batch_size of 1"
            )
        pixels, *others = (np.stack(part) for part in zip(*pairs, strict=True))
        images = np.empty(pixels.shape, np.float32)
        self._transform.output_shape(pixels.shape[1:])
        self._transform.finish(pixels, _WHOLE, images)
        parts = [images, *(other.astype(np.float32) for other in others)]
        return DenseBatch([torch.from_numpy(part) for part in parts])

    def close(self) -> None:
        self._workers.close()


@layer_types.register("DenseImageData")
class DenseImageData(BatchDataLayer):
    """Images and images of labels in the order of the list, or shuffled anew in each round.

    The list has the name of an image and that of its labels, and so on, with blanks or line ends
    between them. Tops N x C x H x W and N x 1 x H x W; mean and scale are those of
    `transform_param`, mirrors and crops those of `dense_image_data_param`, in both phases. Labels
    have `label_divide_factor` times fewer rows and columns (ENet).
    """

    tops = (2, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.dense_image_data_param
        self.batch_size = settings.batch_size
        self.check_batch_size(f"{_FIELD}.batch_size")
        self._check(settings)
        refuse_resizing(self.param.transform_param)
        self.transform = Transform(self.param.transform_param, self.param.phase)
        if self.transform.is_random or self.transform.crop_size:
            raise self.error(
                f"mirrors and crops are given in {_FIELD}: mirror, crop_height and crop_width",
                "transform_param",
            )
        log.info(f"Opening file {settings.source}")
        names = list(read_words(settings.source))
        pairs = list(zip(names[::2], names[1::2], strict=False))
        if not pairs:
            raise CaffeError("lists no pair of an image and its labels", file=settings.source)
        if settings.shuffle:
            log.info("Shuffling data")
        log.info(f"A total of {len(pairs)} examples.")
        if settings.rand_skip:
            log.info(f"Skipping first {self.draw_skip(settings.rand_skip)} data points.")
        self._pairs = PairReader(pairs, settings)
        first = self._read_first()
        self._shapes = [(self.batch_size, *part.shape) for part in first]
        log.info("output data size: " + ",".join(map(str, self._shapes[0])))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return list(self._shapes)

    def reader(self, share: Share, *, pin: bool) -> DenseBatches:
        return DenseBatches(
            self._pairs,
            self.transform,
            self._order(),
            RecordDraws(self.context.seed, f"transform/{self.name}"),
            share,
            self.batch_size,
            skip=self.draw_skip(self.param.dense_image_data_param.rand_skip),
            for_gpu=pin,
        )

    def _order(self) -> Order:
        shuffled = self.param.dense_image_data_param.shuffle
        seed = self.context.seed if shuffled else None
        return Order(len(self._pairs.pairs), seed, f"shuffle/{self.name}")

    def _read_first(self) -> tuple[Image, ...]:
        skip = self.draw_skip(self.param.dense_image_data_param.rand_skip)
        first = self._pairs.read(self._order().index(skip), (0, 0, 0))
        self.transform.output_shape(first[0].shape)
        return first

    def _check(self, settings: DenseImageDataParameter) -> None:
        if not settings.source:
            raise self.error("must name a list of images", f"{_FIELD}.source")
        for name in ("new", "crop"):
            if bool(getattr(settings, f"{name}_height")) != bool(
                getattr(settings, f"{name}_width")
            ):
                raise self.error(f"{name}_height and {name}_width must be given together", _FIELD)
        if settings.HasField("mean_file"):
            raise self.error(
                "is not read in the fork; give it in transform_param", f"{_FIELD}.mean_file"
            )
        if settings.label_divide_factor < 1:
            raise self.error("must be at least 1", f"{_FIELD}.label_divide_factor")
        if settings.label_divide_factor > 1 and settings.crop_height:
            raise self.error(
                "cannot be combined with a crop, which labels have at the same place",
                f"{_FIELD}.label_divide_factor",
            )
