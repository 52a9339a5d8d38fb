"""Batches for a GPU that decodes JPEGs itself; see `jpeg_batch` for one of them."""

from __future__ import annotations

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


class JpegBatches(ImageBatches):
    """What `ImageBatches` gives for a GPU, with the JPEGs of Datums left to it.

    What it cannot decode, and what is no JPEG, is decoded here; so are batches that begin with such
    an image, for there may be many of them.
    """

    def __init__(self, decoder: DatumDecoder, *settings: Any) -> None:
        super().__init__(*settings, for_gpu=True)
        self._plain = PlainJpegs(upright=decoder.color)
        #: Finds a batch while the one before is decoded.
        self._finder: ThreadPoolExecutor | None = None
        self._found: Future[ImageBatch] | None = None

    def read(self) -> ImageBatch:
        finder = self._finder = self._finder or self._new_finder()
        found = self._found or finder.submit(super().read)
        self._found = finder.submit(super().read)
        return found.result()

    def _new_finder(self) -> ThreadPoolExecutor:
        """A thread that has the GPU of the one that asks for it."""
        if not self._pin:
            return ThreadPoolExecutor(1, "find")
        return ThreadPoolExecutor(1, "find", torch.cuda.set_device, (torch.cuda.current_device(),))

    def close(self) -> None:
        if self._finder is not None:
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

        batch = JpegBatch(
            self._batch_size,
            shape,
            self._transform,
            torch.uint8,
            decode=decode,
            pin=False,  # few images, if any, go from there to the GPU
            memory=self._memory,
        )
        batch.labels.numpy()[:] = found.labels
        if draws is None:
            draws = np.zeros((len(items), 3), np.int64)
        fits = self._fit(found.kinds, first)
        batch.put_jpegs(self._jpegs(found, fits.nonzero()[0], draws))
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
