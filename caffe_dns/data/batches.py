"""Makes batches of images from a source: fetches, decodes, crops and copies each into its place.

The result lies in host memory (pinned when it is to go to a GPU) with all that is needed to finish
it on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.sources import ImageSource
from caffe_dns.data.transform import ImageShape, RecordDraws, Transform, crop, shape_text
from caffe_dns.data.workers import Workers
from caffe_dns.errors import CaffeError

#: Bytes of pixels in a batch from which on copying them is worth several threads.
_SHARED_WORK = 4 << 20


@dataclass
class Share:
    """Which records a rank reads: those from `start` on whose number is `rank` modulo `ranks`."""

    start: int = 0
    rank: int = 0
    ranks: int = 1

    def batches(self, batch_size: int) -> Iterator[IntArray]:
        """The record numbers of one batch after the other."""
        first = self.start + (self.rank - self.start) % self.ranks
        while True:
            yield first + self.ranks * np.arange(batch_size)
            first += self.ranks * batch_size


@dataclass
class ImageBatch:
    """Cropped images [N, channels, height, width] in uint8 or float32, their labels and cuts."""

    pixels: Tensor
    labels: Tensor
    cuts: Tensor | None
    transform: Transform

    def tops(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Images and labels on `device`, float32, transformed."""
        pixels = self.pixels.to(device, non_blocking=True)
        cuts = None if self.cuts is None else self.cuts.to(device, non_blocking=True)
        labels = self.labels.to(device, non_blocking=True)
        return self.transform.apply(pixels, cuts), labels


class ImageBatches:
    """The batches of one layer, one after the other."""

    def __init__(
        self,
        source: ImageSource[Any],
        transform: Transform,
        draws: RecordDraws,
        share: Share,
        batch_size: int,
        *,
        pin: bool,
    ) -> None:
        self._source = source
        self._transform = transform
        self._draws = draws
        self._numbers = share.batches(batch_size)
        self._batch_size = batch_size
        self._pin = pin
        self._workers = Workers()

    def read(self) -> ImageBatch:
        """The next batch. Raises CaffeError for records that cannot be used."""
        records = next(self._numbers)
        items = self._source.fetch_all(records.tolist())
        draws = self._draws.of(records) if self._transform.is_random else None
        alike = self._source.decode_alike(items)
        if alike is not None and not self._transform.random_crop:
            return self._copy_alike(*alike, draws)
        return self._copy_each(items, draws)

    def _copy_alike(self, images: Image, labels: Image, draws: IntArray | None) -> ImageBatch:
        """A batch of images that are all cropped at the same place."""
        shape = images.shape[1:]
        batch = self._new_batch(self._transform.output_shape(shape), torch.uint8)
        cut = self._transform.cut(shape, [0, 0, 0])
        batch.pixels.numpy()[:] = crop(images, cut, self._transform.crop_size)
        batch.labels.numpy()[:] = labels
        if batch.cuts is not None and draws is not None:
            cuts = batch.cuts.numpy()
            cuts[:] = cut.top, cut.left, 0
            cuts[:, 2] = draws[:, 0] & 1
        return batch

    def _copy_each(self, items: list[Any], draws: IntArray | None) -> ImageBatch:
        """A batch of images that are decoded and cropped one by one."""
        first, _ = self._source.decode(items[0])
        dtype = torch.uint8 if first.dtype == np.uint8 else torch.float32
        batch = self._new_batch(self._transform.output_shape(first.shape), dtype)
        pixels, labels = batch.pixels.numpy(), batch.labels.numpy()
        cuts = None if batch.cuts is None else batch.cuts.numpy()
        numbers = [[0, 0, 0]] * len(items) if draws is None else draws.tolist()

        def place(some: range) -> None:
            for index in some:
                image, labels[index] = self._source.decode(items[index])
                self._check(image, pixels)
                cut = self._transform.cut(image.shape, numbers[index])
                pixels[index] = crop(image, cut, self._transform.crop_size)
                if cuts is not None:
                    cuts[index] = cut.top, cut.left, cut.mirrored

        if self._source.is_encoded(items[0]) or pixels.nbytes > _SHARED_WORK:
            self._workers.run(place, len(items))
        else:
            place(range(len(items)))
        return batch

    def close(self) -> None:
        """Stop the decoding threads and close the source."""
        self._workers.close()
        self._source.close()

    def _new_batch(self, shape: ImageShape, dtype: torch.dtype) -> ImageBatch:
        size, pin = self._batch_size, self._pin
        return ImageBatch(
            torch.empty((size, *shape), dtype=dtype, pin_memory=pin),
            torch.empty((size,), pin_memory=pin),
            torch.empty((size, 3), dtype=torch.int64, pin_memory=pin)
            if self._transform.is_random
            else None,
            self._transform,
        )

    def _check(self, image: Image, pixels: Image) -> None:
        """Raise CaffeError unless `image` can have a place among `pixels`."""
        if self._transform.output_shape(image.shape) != pixels.shape[1:]:
            raise CaffeError(
                f"images of {shape_text(image.shape)} and {shape_text(pixels.shape[1:])} "
                f"(channels, height, width) in one batch; resize them, or give a crop_size"
            )
        if image.dtype != np.uint8 and pixels.dtype == np.uint8:
            raise CaffeError("records with data and records with float_data in one batch")
