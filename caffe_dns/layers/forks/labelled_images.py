"""Batches of images that are read together with their labels: of pixels, or of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from caffe_dns import log
from caffe_dns.data.batches import Share
from caffe_dns.data.crops import Cut
from caffe_dns.data.datum import Image
from caffe_dns.data.hdf5_rows import ArrayBatch
from caffe_dns.data.sources import Order
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.data.workers import Workers, reading_threads
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.proto.caffe_pb2 import (
    DenseImageDataParameter,
    ImageDataParameter,
    VideoDataParameter,
)

_WHOLE = Cut(0, 0, False)


class LabelledReader(Protocol):
    """Reads images with their labels by their place in a list."""

    def __len__(self) -> int:
        """How many the list has."""
        ...

    def read(self, index: int, draw: Sequence[int]) -> tuple[Image, ...]:
        """The image at `index` as [C, H, W], its labels as [1, ...], and what else there is.

        `draw` has three random numbers. Raises CaffeError for files that cannot be used.
        """
        ...


class LabelledBatches:
    """The batches of one layer, one after the other."""

    def __init__(
        self,
        images: LabelledReader,
        transform: Transform,
        order: Order,
        draws: RecordDraws,
        share: Share,
        batch_size: int,
        *,
        skip: int,
        for_gpu: bool,
    ) -> None:
        self._images = images
        self._transform = transform
        self._order = order
        self._draws = draws
        self._numbers = share.batches(batch_size)
        self._skip = skip
        self._workers = Workers(reading_threads(for_gpu=for_gpu))

    def read(self) -> ArrayBatch:
        """Images [N, C, H, W], labels [N, 1, ...] and what else there is, of the next batch.

        Raises CaffeError for files that cannot be used.
        """
        numbers = next(self._numbers)
        draws = self._draws.of(numbers).tolist()

        def make(at: int) -> tuple[Image, ...]:
            index = self._order.index(int(numbers[at]) + self._skip)
            return self._images.read(index, draws[at])

        made = self._workers.map(make, range(len(numbers)))
        shapes = {image.shape for image, *_ in made}
        if len(shapes) > 1:
            first, second = sorted(shapes)[:2]
            raise CaffeError(
                f"images of {first} and {second} (channels, height, width) in one batch; give a "
                "crop, a new size, or a batch_size of 1"
            )
        pixels, *others = (np.stack(part) for part in zip(*made, strict=True))
        images = np.empty(pixels.shape, np.float32)
        self._transform.output_shape(pixels.shape[1:])
        self._transform.finish(pixels, _WHOLE, images)
        parts = [images, *(other.astype(np.float32) for other in others)]
        return ArrayBatch([torch.from_numpy(part) for part in parts])

    def close(self) -> None:
        self._workers.close()


class LabelledImageLayer(BatchDataLayer):
    """A layer whose images and labels come in the order of a list, or shuffled in each round."""

    #: What reads them, and what is done to the images then.
    images: LabelledReader
    transform: Transform

    @property
    def settings(self) -> DenseImageDataParameter | ImageDataParameter | VideoDataParameter:
        """The settings of the list: rand_skip and shuffle."""
        raise NotImplementedError

    def read_first(self) -> tuple[Image, ...]:
        """The image and the labels that come first, not transformed yet."""
        skip = self.draw_skip(self.settings.rand_skip)
        return self.images.read(self._order().index(skip), (0, 0, 0))

    def size_by(self, first: Sequence[Image]) -> None:
        """Take the shapes of the tops from the first image and its labels."""
        self.transform.output_shape(first[0].shape)
        self._shapes = [(self.batch_size, *part.shape) for part in first]
        log.info("output data size: " + ",".join(map(str, self._shapes[0])))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return list(self._shapes[: self.num_tops])

    def reader(self, share: Share, *, pin: bool) -> LabelledBatches:
        return LabelledBatches(
            self.images,
            self.transform,
            self._order(),
            RecordDraws(self.context.seed, f"transform/{self.name}"),
            share,
            self.batch_size,
            skip=self.draw_skip(self.settings.rand_skip),
            for_gpu=pin,
        )

    def _order(self) -> Order:
        seed = self.context.seed if self.settings.shuffle else None
        return Order(len(self.images), seed, f"shuffle/{self.name}")
