"""What the layers that read batches ahead have in common: Data, ImageData, HDF5Data, WindowData.

Each layer says which batches there are; the thread, the device and the position in the data are
handled here. Restates `base_data_layer.cpp`.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, ClassVar, Protocol, TypeAlias

import torch
from torch import Tensor

from caffe_dns import log, rng
from caffe_dns.data.batches import Share
from caffe_dns.data.image_batch import CroppedBatch, SentBatch
from caffe_dns.data.prefetch import Prefetcher
from caffe_dns.data.random_resizing import ResizedSource, resizes
from caffe_dns.data.sources import ImageSource
from caffe_dns.data.transform import RecordDraws, Transform
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context, Layer, Shape
from caffe_dns.layers.checks import WrongLabel
from caffe_dns.proto.caffe_pb2 import TRAIN, LayerParameter, TransformationParameter

#: How many batches back an invalid label is searched for: those of iter_size, and more.
_BATCHES_LOOKED_AT = 64


class Batch(Protocol):
    """A batch in host memory that can be sent to a device."""

    def tops(self, device: torch.device) -> Sequence[Tensor]:
        """The finished tops on `device`."""
        ...


class BatchReader(Protocol):
    """Makes batches, one after the other."""

    def read(self) -> Batch:
        """The next batch."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


class BatchDataLayer(Layer):
    """A layer without bottoms whose tops come from a prefetching thread.

    The thread starts at the first forward pass. In TRAIN the ranks share the records: record i goes
    to rank i modulo the number of ranks. In TEST one rank reads them all.
    """

    bottoms = (0, 0)
    tops: ClassVar[tuple[int, int | None]] = (1, 2)
    is_source = True
    gives_away = True
    #: Records in a batch of one rank.
    batch_size: int

    def __init__(self, param: LayerParameter, context: Context) -> None:
        super().__init__(param, context)
        train = param.phase == TRAIN
        self.ranks = context.world_size if train else 1
        self._ranks_here = context.local_size if train else 1
        #: `position` when the thread was started.
        self._position = 0
        self._feed: _Feed | None = None
        self._offered: Sequence[Tensor] = ()

    @abstractmethod
    def reader(self, share: Share, *, pin: bool) -> BatchReader:
        """A new reader for these records; `pin` asks for batches in pinned memory.

        It reads up to `batches_at_once` batches of the net together.
        """

    @property
    def batches_at_once(self) -> int:
        """How many batches are read, copied and transformed together, to save overhead.

        A reader may read fewer.
        """
        return 1

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        try:
            if self._feed is None:
                self._feed = self._start()
            offered, self._offered = self._offered, ()
            tops = self._feed.get(offered)
        except CaffeError as error:
            raise error.locate(layer=self.name) from None
        return tops[: self.num_tops]

    def offer(self, memory: Sequence[Tensor]) -> None:
        self._offered = memory

    def position(self) -> int:
        """Records that forward passes have used so far, on all ranks together."""
        taken = self._feed.taken if self._feed is not None else 0
        return self._position + taken * self.batch_size * self.ranks

    def seek(self, records: int) -> None:
        """Continue at record number `records`, the first unused one."""
        self.close()
        self._position = records

    def close(self) -> None:
        """Stop the thread. A later forward pass starts it again, at the same record."""
        if self._feed is not None:
            self._feed.close()
            self._position = self.position()
            self._feed = None

    def draw_skip(self, rand_skip: int) -> int:
        """How many records to skip at the beginning: fewer than `rand_skip`."""
        if not rand_skip:
            return 0
        generator = rng.numpy_generator(self.context.seed, f"rand_skip/{self.name}")
        return int(generator.integers(rand_skip))

    def check_batch_size(self, field: str) -> None:
        """Raise CaffeError unless there is a positive batch size."""
        if self.batch_size < 1:
            raise self.error("must be given, and be positive", field)

    def _start(self) -> _Feed:
        device = self.context.device
        reader = self.reader(self._share(), pin=device.type == "cuda")
        sizes = self.batch_size, self.batches_at_once
        feed = _Feed(reader, device, self.prefetch, *sizes, self.name)
        # For a layer that is dropped without close, and for the end of the interpreter.
        weakref.finalize(self, feed.close)
        return feed

    def _share(self) -> Share:
        """The records that this rank reads from now on."""
        rank = self.context.rank % self.ranks
        return Share(self._position, rank, self.ranks, self._ranks_here)

    def name_record(self, error: WrongLabel, top: str) -> CaffeError:
        """An error about a label in this top of a recent batch, with the location of its record.

        That is the last record used with an invalid label; the error is unchanged if there is none.
        """
        return error

    def lately_used(self) -> Iterator[range]:
        """The record numbers of recent batches, the last batch of all ranks first."""
        at_once = self.batch_size * self.ranks
        for end in range(self.position(), 0, -at_once)[:_BATCHES_LOOKED_AT]:
            yield range(max(end - at_once, 0), end)

    @property
    def prefetch(self) -> int:
        """How many batches may be read ahead."""
        return self.param.data_param.prefetch


class ImageBatchLayer(BatchDataLayer):
    """A layer whose tops are transformed images and, if there is a second, their labels."""

    #: Channels, height and width of the first image, before the transform.
    first_shape: tuple[int, int, int]

    @abstractmethod
    def records(self) -> ImageSource[Any]:
        """The stored images, in the order of the batches."""

    def transform_settings(self) -> TransformationParameter:
        """What is done to each image."""
        return self.param.transform_param

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.transform_settings()
        #: Whether images get a random size before they are cropped.
        self.resizes = resizes(settings)
        self.transform = Transform(settings, self.param.phase)
        first = self.first_shape
        if self.resizes:
            first = (first[0], settings.crop_size, settings.crop_size)
        self._shape = (self.batch_size, *self.transform.output_shape(first))
        log.info("output data size: " + ",".join(str(extent) for extent in self._shape))

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [self._shape, (self.batch_size,)][: self.num_tops]

    def name_record(self, error: WrongLabel, top: str) -> CaffeError:
        if top not in self.param.top[1:]:  # except images, whose pixels are the labels
            return error
        with closing(self.records()) as source:
            for records in self.lately_used():
                items = source.load(source.fetch_all(records))
                for record, item in zip(records, items, strict=True):
                    if not error.fits(source.decode(item)[1]):
                        return source.explain(error, record)
        return error

    # The following depends on the current seed: a solver that resumes changes it after setup.

    def resized(self, source: ImageSource[Any]) -> ImageSource[Any]:
        """The source, with images of random sizes if the definition asks for them."""
        if not self.resizes:
            return source
        draws = partial(rng.numpy_generator, self.context.seed, f"resize/{self.name}")
        return ResizedSource(source, self.param.transform_param, draws)

    def draws(self) -> RecordDraws:
        """The draws for crops and mirrors of records."""
        return RecordDraws(self.context.seed, f"transform/{self.name}")


#: Makes a batch's tops ready on the caller's stream, in their own memory or in offered memory.
_Take: TypeAlias = "Callable[[Sequence[Tensor]], Sequence[Tensor]]"


class _Feed:
    """The prefetching thread of a layer, and the batches that it has sent to the device."""

    def __init__(
        self,
        reader: BatchReader,
        device: torch.device,
        depth: int,
        size: int,
        at_once: int,
        name: str,
    ) -> None:
        self._reader = reader
        self._size, self._at_once = size, at_once
        self._ready: deque[Sequence[Tensor]] = deque()
        #: How many batches of the net the layer has taken.
        self.taken = 0
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        produce: Callable[[], _Take] = self._read
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            produce = self._read_to_gpu
        self._prefetcher = Prefetcher(produce, max(depth // at_once, 2), name)

    def get(self, offered: Sequence[Tensor]) -> Sequence[Tensor]:
        """The tops of the next batch; some may be the offered tensors."""
        if not self._ready:
            tops = self._prefetcher.get()(offered)
            if self._at_once == 1:
                self._ready.append(tops)
            else:
                self._ready.extend(zip(*(top.split(self._size) for top in tops), strict=True))
        self.taken += 1
        return self._ready.popleft()

    def close(self) -> None:
        self._prefetcher.close()
        self._reader.close()

    def _read(self) -> _Take:
        batch = self._reader.read()
        return lambda _: batch.tops(self._device)

    def _read_to_gpu(self) -> _Take:
        """Copy on a separate stream, and transform there what is for several batches.

        A single batch is transformed when the net takes it, directly into offered memory if there
        is any. Until then its bytes are kept, which take less memory.
        """
        stream = self._stream
        assert stream is not None
        with torch.cuda.device(self._device):
            batch = self._reader.read()
            with torch.cuda.stream(stream), torch.no_grad():
                sent: SentBatch | _Finished
                if self._at_once == 1 and isinstance(batch, CroppedBatch):
                    sent = batch.sent(self._device)
                else:
                    sent = _Finished(batch.tops(self._device))
                ready = stream.record_event()

        @torch.no_grad()
        def take(offered: Sequence[Tensor]) -> Sequence[Tensor]:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(ready)
            sent.record_stream(current)
            return sent.tops(offered[0] if offered else None)

        return take


class _Finished:
    """Finished tops on a GPU, as a `SentBatch`."""

    def __init__(self, tops: Sequence[Tensor]) -> None:
        self._tops = tops

    def tops(self, into: Tensor | None) -> Sequence[Tensor]:
        return self._tops

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for top in self._tops:
            top.record_stream(stream)
