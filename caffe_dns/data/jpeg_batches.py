"""Batches for a GPU that decodes JPEGs itself; see `jpeg_batch` for one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from caffe_dns.data.batches import Begun, ImageBatches
from caffe_dns.data.datum import DatumDecoder, Image, IntArray
from caffe_dns.data.image_batch import ImageBatch
from caffe_dns.data.jpeg_batch import JpegBatch, Jpegs
from caffe_dns.data.jpeg_records import JpegRecords, find_jpegs
from caffe_dns.data.plain_jpegs import PlainJpegs

#: How many batches are found before they are asked for. One more is in the GPU's units then.
_FOUND_AHEAD = 2


class JpegBatches(ImageBatches):
    """What `ImageBatches` gives for a GPU, with the JPEGs of Datums left to it.

    What it cannot decode, and what is no JPEG, is decoded here; so are batches that begin with such
    an image, for there may be many of them.
    """

    def __init__(self, decoder: DatumDecoder, device: torch.device, *settings: Any) -> None:
        super().__init__(*settings, for_gpu=True)
        self._device = device
        self._plain = PlainJpegs(upright=decoder.color)
        #: Finds batches, and lets the GPU begin with each, while it still decodes the one before.
        self._finder = ThreadPoolExecutor(1, "find", self._use_device)
        self._found: deque[Future[ImageBatch]] = deque()

    def read(self) -> ImageBatch:
        while len(self._found) < _FOUND_AHEAD:
            self._found.append(self._finder.submit(self._find))
        return self._found.popleft().result()

    def _find(self) -> ImageBatch:
        batch = super().read()
        if isinstance(batch, JpegBatch):
            batch.begin(self._device)
        return batch

    def _use_device(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def close(self) -> None:
        self._finder.shutdown(cancel_futures=True)
        super().close()

    def _copy_each(self, items: Sequence[Any], records: IntArray, draws: IntArray | None) -> Begun:
        with self._source.at(int(records[0])):
            found = find_jpegs(items, self._plain)
        if found is None:
            return super()._copy_each(items, records, draws)
        height, width = found.kinds[0, :2].tolist()
        first = np.broadcast_to(np.uint8(0), (3, height, width))
        with self._source.at(int(records[0])):
            shape = self._transform.output_shape(first.shape)

        def decode(index: int) -> Image:
            with self._source.at(int(records[index])):
                image, _ = self._source.decode(items[index])
                self._check(image, first)
            return image

        if draws is None:
            draws = np.zeros((len(items), 3), np.int64)
        fits = self._fit(found.kinds, first)
        batch = JpegBatch(
            self._batch_size,
            shape,
            self._transform,
            torch.uint8,
            jpegs=self._jpegs(found, fits.nonzero()[0], draws),
            decode=decode,
            pin=False,  # few images, if any, go from there to the GPU
            memory=self._memory,
        )
        batch.labels.numpy()[:] = found.labels
        others, numbers = (~fits).nonzero()[0].tolist(), draws.tolist()

        def place(some: range) -> None:
            for index in others[some.start : some.stop]:
                image = decode(index)
                batch.put(index, image, self._transform.cutter.cut(image.shape, numbers[index]))

        return Begun(batch, self._workers.start(place, range(len(others))) if others else ())

    def _jpegs(self, found: JpegRecords, places: IntArray, draws: IntArray) -> Jpegs:
        """Those of some places in the batch."""
        memory = np.frombuffer(found.memory, np.uint8)
        starts = found.starts[places] + memory.__array_interface__["data"][0]
        kinds = found.kinds[places]
        return Jpegs(
            places,
            np.column_stack([starts, found.sizes[places]]),
            kinds,
            self._transform.cutter.cuts_of(kinds[:, :2], draws[places]),
            memory,
        )

    def _fit(self, kinds: IntArray, first: Image) -> Any:
        """Which JPEGs belong into a batch with the first image, [N]."""
        if self._transform.crop_size and self._transform.mean is None:
            return kinds[:, :2].min(1) >= self._transform.crop_size
        return (kinds[:, :2] == first.shape[1:]).all(1)
