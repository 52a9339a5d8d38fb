"""Makes batches of images from a source: fetches, decodes, crops and copies each into its place.

The result lies in host memory (pinned when it is to go to a GPU) with all that is needed to finish
it on the device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_dns.data.datum import Image
from caffe_dns.data.sources import ImageSource
from caffe_dns.data.transform import IntArray, Transform, crop, shape_text
from caffe_dns.errors import CaffeError

#: Most threads that decode images for one layer.
_MOST_THREADS = 16


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
        share: Share,
        batch_size: int,
        *,
        pin: bool,
    ) -> None:
        self._source = source
        self._transform = transform
        self._numbers = share.batches(batch_size)
        self._batch_size = batch_size
        self._pin = pin
        self._pool: ThreadPoolExecutor | None = None

    def read(self) -> ImageBatch:
        """The next batch. Raises CaffeError for records that cannot be used."""
        records = next(self._numbers)
        items = [self._source.fetch(record) for record in records.tolist()]
        first, _ = self._source.decode(items[0])
        shape = self._transform.output_shape(first.shape)
        dtype = torch.uint8 if first.dtype == np.uint8 else torch.float32
        pixels = self._empty((self._batch_size, *shape), dtype)
        labels = self._empty((self._batch_size,), torch.float32)
        cuts = self._empty((self._batch_size, 3), torch.int64)
        arrays = pixels.numpy(), labels.numpy(), cuts.numpy()
        draws = self._transform.draws(records).tolist()

        def place(index: int) -> None:
            self._place(items[index], index, draws[index], *arrays)

        if self._source.is_encoded(items[0]):
            list(self._threads().map(place, range(self._batch_size)))
        else:
            for index in range(self._batch_size):
                place(index)
        return ImageBatch(
            pixels, labels, cuts if self._transform.is_random else None, self._transform
        )

    def close(self) -> None:
        """Stop the decoding threads and close the source."""
        if self._pool is not None:
            self._pool.shutdown()
        self._source.close()

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None:
            threads = min(os.cpu_count() or 1, self._batch_size, _MOST_THREADS)
            self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        return self._pool

    def _empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._pin)

    def _place(
        self,
        item: Any,
        index: int,
        draw: list[int],
        pixels: Image,
        labels: Image,
        cuts: IntArray,
    ) -> None:
        """Put a decoded and cropped record into its place in the batch."""
        image, labels[index] = self._source.decode(item)
        shape = self._transform.output_shape(image.shape)
        if shape != pixels.shape[1:]:
            raise CaffeError(
                f"images of {shape_text(image.shape)} and {shape_text(pixels.shape[1:])} "
                f"(channels, height, width) in one batch; resize them, or give a crop_size"
            )
        if image.dtype != np.uint8 and pixels.dtype == np.uint8:
            raise CaffeError("records with data and records with float_data in one batch")
        cut = self._transform.cut(image.shape, draw)
        pixels[index] = crop(image, cut, self._transform.crop_size)
        cuts[index] = cut.top, cut.left, cut.mirrored
