"""Makes batches of images from a source: fetches and decodes each, and puts it into its place.

What happens to it there is up to the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from caffe_dns.data.crop_task import CropTask
from caffe_dns.data.crops import ImageShape
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.decoding_processes import DecodingProcesses
from caffe_dns.data.image_batch import BatchMemory, CroppedBatch, FinishedBatch, ImageBatch
from caffe_dns.data.raw_records import RawRecords
from caffe_dns.data.sources import ImageSource
from caffe_dns.data.stored import sendable
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.data.workers import Workers, decoding_processes, reading_threads
from caffe_dns.errors import CaffeError

#: Batches with at least this many bytes of pixels are copied by several threads.
_SHARED_WORK = 4 << 20
#: How many bytes can be copied in the time it takes to decode one.
_DECODING = 32
#: How many records a thread or process takes at a time, and how many bytes of pixels.
_MOST_TOGETHER, _BYTES_TOGETHER = 32, 4 << 20


@dataclass
class Share:
    """The records that a rank reads: those from `start` on with number `rank` modulo `ranks`."""

    start: int = 0
    rank: int = 0
    ranks: int = 1
    #: How many ranks share this host's cores.
    ranks_here: int = 1

    def batches(self, batch_size: int) -> Iterator[IntArray]:
        """The record numbers of one batch after the other."""
        first = self.start + (self.rank - self.start) % self.ranks
        while True:
            yield first + self.ranks * np.arange(batch_size)
            first += self.ranks * batch_size


@dataclass
class Begun:
    """A batch or its error, and the work of threads that is still going on."""

    batch: ImageBatch | CaffeError
    pieces: Sequence[Future[None]] = ()
    #: The number of the first record.
    first: int = 0

    def finish(self) -> ImageBatch:
        """Wait for the batch. Raises CaffeError."""
        for piece in self.pieces:
            piece.result()
        if isinstance(self.batch, CaffeError):
            raise self.batch
        return self.batch


class ImageBatches:
    """The batches of one layer, one after the other.

    Each holds `at_once` batches of the net; only one from the point where images have different
    sizes or an error occurs, so that the net gets everything before it. `for_gpu` asks for batches
    that a GPU finishes.
    """

    def __init__(
        self,
        source: ImageSource[Any],
        transform: Transform,
        draws: RecordDraws,
        share: Share,
        batch_size: int,
        at_once: int = 1,
        *,
        for_gpu: bool,
    ) -> None:
        self._source = source
        self._transform = transform
        self._draws = draws
        self._share, self._at_once = share, at_once
        self._batch_size = batch_size * at_once
        self._numbers = share.batches(self._batch_size)
        self._for_gpu = for_gpu
        self._pin = for_gpu and torch.cuda.is_available()
        self._memory = BatchMemory()
        wanted = for_gpu and source.decoder is not None
        #: How many processes decode for this one; they start when they are first needed.
        self._processes = decoding_processes(share.ranks_here, self._batch_size) if wanted else 0
        self._decoders: DecodingProcesses | None = None
        self._workers = Workers(self._processes or reading_threads(for_gpu=for_gpu))
        self._next: Begun | None = None

    def read(self) -> ImageBatch:
        """The next batch. Raises CaffeError for records that cannot be used."""
        begun = self._next or self._begin()
        # Threads continue with it instead of waiting for the last of this batch.
        self._next = self._begin() if begun.pieces else None
        try:
            return begun.finish()
        except CaffeError:
            if self._at_once == 1:
                raise
        self._go_on_singly(begun.first)
        return self.read()

    def _go_on_singly(self, first: int) -> None:
        """Read single batches of the net from this record on."""
        if self._next is not None:
            wait(self._next.pieces)
        self._next = None
        self._batch_size //= self._at_once
        self._at_once = 1
        self._numbers = replace(self._share, start=first).batches(self._batch_size)

    def _begin(self) -> Begun:
        """Start the next batch; an error is raised when that batch is taken."""
        records = next(self._numbers)
        try:
            begun = self._fill(records)
        except CaffeError as error:
            begun = Begun(error)
        begun.first = int(records[0])
        return begun

    def _fill(self, records: IntArray) -> Begun:
        """The batch of these records, which threads may still be working on."""
        draws = self._draws.of(records) if self._transform.is_random else None
        alike = self._source.recall(records)
        if alike is None:
            items = self._source.fetch_all(records.tolist())
            with self._source.at(int(records[0])):
                alike = self._source.decode_alike(items, records)
        if alike is not None:
            return self._copy_alike(*alike, draws)
        with self._source.at(int(records[0])):
            raw = self._source.find_raw(items) if self._for_gpu else None
        if raw is not None:
            return self._copy_raw(raw, draws)
        return self._copy_each(items, records, draws)

    def _copy_alike(self, images: Image, labels: Image, draws: IntArray | None) -> Begun:
        """A batch of images of one shape that need no decoding."""
        batch = self._new_batch(images[0])
        batch.put_all(images, self._cuts(images.shape[1:], draws))
        batch.labels.numpy()[:] = labels
        return Begun(batch)

    def _copy_raw(self, raw: RawRecords, draws: IntArray | None) -> Begun:
        """A batch of crops that only have to be copied, for a GPU."""
        size = self._batch_size
        batch = CroppedBatch(
            size,
            self._transform.output_shape(raw.shape),
            self._transform,
            torch.uint8,
            pin=self._pin,
            memory=self._memory,
        )
        copy = batch.begin_raw(raw, self._cuts(raw.shape, draws))
        worth_it = -(-_SHARED_WORK // batch.pixels[0].nbytes)
        return Begun(batch, self._workers.start(copy, range(size), worth_it))

    def _cuts(self, shape: ImageShape, draws: IntArray | None) -> IntArray:
        """The cuts of a batch's images, all of this shape, [N, 3]."""
        if draws is None:
            draws = np.zeros((self._batch_size, 3), np.int64)
        return self._transform.cutter.cuts(shape, draws)

    def _copy_each(self, items: Sequence[Any], records: IntArray, draws: IntArray | None) -> Begun:
        """A batch of images that are decoded and cropped one by one."""
        with self._source.at(int(records[0])):
            first, first_label = self._source.decode(items[0])
        batch = self._new_batch(first)
        is_encoded = self._source.is_encoded(items[0])
        if self._processes and is_encoded and self._decoders is None:
            # A later batch may start with a smaller image, so that more are decoded together.
            shape = (_MOST_TOGETHER, *self._transform.output_shape(first.shape))
            self._decoders = DecodingProcesses(self._processes, math.prod(shape))
        place = self._placing(batch, items, records, first, draws)
        numbers = [0, 0, 0] if draws is None else draws[0].tolist()
        batch.put(0, first, self._transform.cutter.cut(first.shape, numbers))
        batch.labels[0] = first_label
        rest = range(1, len(items))
        # Threads with little work slow down the training thread, because all need Python's lock.
        worth_it = -(-_SHARED_WORK // (self._cost(items[0]) if is_encoded else first.nbytes))
        if self._decoders is not None:  # calling a process costs as much as cropping several images
            each = -(-len(rest) // self._processes)
            worth_it = max(worth_it, min(each, _most_together(first)))
        if worth_it < len(rest):
            return Begun(batch, self._workers.start(place, rest, worth_it))
        place(rest)
        return Begun(batch)

    def _cost(self, item: Any) -> int:
        """The cost of decoding an item, in bytes that could be copied in the same time."""
        # A small image may come from a large file.
        return _DECODING * len(item) if self._source.decoder is not None else _SHARED_WORK

    def _placing(
        self,
        batch: ImageBatch,
        items: Sequence[Any],
        records: IntArray,
        first: Image,
        draws: IntArray | None,
    ) -> Callable[[range], None]:
        """A function that decodes some of the items, like `first`, into their places."""
        labels = batch.labels.numpy()
        numbers = [[0, 0, 0]] * len(items) if draws is None else draws.tolist()
        most = _most_together(first)

        def place(some: range) -> None:
            if not some:
                return
            together = -(-len(some) // -(-len(some) // most))
            for start in range(some.start, some.stop, together):
                part = slice(start, min(start + together, some.stop))
                if self._crop_elsewhere(batch, part, items, first, numbers):
                    continue
                for index, item in enumerate(self._source.load(items[part]), start):
                    with self._source.at(int(records[index])):
                        image, labels[index] = self._source.decode(item)
                        if image.shape != first.shape or image.dtype != first.dtype:
                            self._check(image, first)
                    batch.put(index, image, self._transform.cutter.cut(image.shape, numbers[index]))

        return place

    def _crop_elsewhere(
        self,
        batch: ImageBatch,
        some: slice,
        items: Sequence[Any],
        first: Image,
        numbers: list[list[int]],
    ) -> bool:
        """Let another process decode some of the items; False if none did."""
        decoder = self._source.decoder
        if self._decoders is None or decoder is None or first.dtype != np.uint8:
            return False
        assert isinstance(batch, CroppedBatch)
        task = CropTask(
            sendable(items[some]),
            numbers[some],
            decoder,
            self._transform.cutter,
            first.shape,
            any_size=self._transform.crop_size > 0 and self._transform.mean is None,
        )
        notes = self._decoders.run(task, batch.places(some))
        if notes is not None:
            batch.put_notes(some, notes)
        return notes is not None

    def close(self) -> None:
        """Stop decoding and close the source."""
        if self._decoders is not None:
            self._decoders.close()
        self._workers.close()
        self._source.close()

    def _new_batch(self, first: Image) -> ImageBatch:
        """An empty batch for images like this one."""
        size, shape = self._batch_size, self._transform.output_shape(first.shape)
        if not self._for_gpu:
            return FinishedBatch(size, shape, self._transform, self._memory)
        dtype = torch.uint8 if first.dtype == np.uint8 else torch.float32
        return CroppedBatch(size, shape, self._transform, dtype, pin=self._pin, memory=self._memory)

    def _check(self, image: Image, first: Image) -> None:
        """Raise CaffeError unless `image` fits in a batch with `first`."""
        shape, wanted = (self._transform.output_shape(each.shape) for each in (image, first))
        self._source.check_alike(shape, wanted, "resize them, or give a crop_size")
        if image.dtype != np.uint8 and first.dtype == np.uint8:
            raise CaffeError("records with data and records with float_data in one batch")


def _most_together(first: Image) -> int:
    """How many images like this one another process crops at a time."""
    return max(1, min(_MOST_TOGETHER, _BYTES_TOGETHER // first.nbytes))
