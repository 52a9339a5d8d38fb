"""Data: the records of an LMDB or LevelDB database (`data_layer.cpp`)."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from caffe_dns import log
from caffe_dns.data.bad_records import BadRecords, ForgivingSource
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.datum import DatumDecoder
from caffe_dns.data.jpeg_batch import units_of
from caffe_dns.data.jpeg_batches import JpegBatches
from caffe_dns.data.sources import DatabaseSource, ImageSource
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context, count, layer_types
from caffe_dns.layers.batch_data import ImageBatchLayer
from caffe_dns.layers.database_records import DatabaseRecords
from caffe_dns.proto.caffe_pb2 import LayerParameter

#: Small batches are read together up to this number, and up to this many bytes of pixels.
MOST_AT_ONCE, BYTES_AT_ONCE = 32, 4 << 20
MOST_ON_CPU, BYTES_ON_CPU = 8, 1 << 19
#: How often it is read on a CPU, at least, until the database starts over: that is logged.
LEAST_IN_ROUND = 64


@layer_types.register("Data")
class Data(ImageBatchLayer, DatabaseRecords):
    """Images and labels from a database, in the order of the keys or shuffled, over and over."""

    def __init__(self, param: LayerParameter, context: Context) -> None:
        super().__init__(param, context)
        self.batch_size = param.data_param.batch_size
        self._bad_records = BadRecords(context.skip_bad_records)
        if context.decode_on_gpu:
            units_of(context.device)
        self.check_database()
        if param.data_param.rand_skip:
            skip = self.draw_skip(param.data_param.rand_skip)
            log.info(f"Skipping first {skip} data points.")
        # Not left to setup: in Caffe's log this comes before "Creating Layer".
        try:
            self._look_at_first_record()
        except CaffeError as error:
            raise error.locate(layer=self.name) from None

    def reader(self, share: Share, *, pin: bool) -> ImageBatches:
        source = self.resized(self.records())
        sizes = self.batch_size, self.batches_at_once
        settings = (source, self.transform, self.draws(), share, *sizes)
        decoder = source.decoder
        if self.context.decode_on_gpu and isinstance(decoder, DatumDecoder) and not decoder.gray:
            return JpegBatches(decoder, self.context.device, *settings)
        return ImageBatches(*settings, for_gpu=pin)

    def records(self) -> ImageSource[Any]:
        return self._forgiving(self.open_records())

    @property
    def batches_at_once(self) -> int:
        if self._bad_records.limit:  # in the place of one stands another of the same batch
            return 1
        pixels = count(self._shape)
        if self.context.device.type == "cuda":
            # It takes a small batch in less time than Python needs to hand it over.
            return max(1, min(MOST_AT_ONCE, BYTES_AT_ONCE // pixels))
        # What computes waits while Python reads.
        of_round = (self._entries or 0) // (LEAST_IN_ROUND * self.batch_size)
        return max(1, min(MOST_ON_CPU, BYTES_ON_CPU // pixels, of_round))

    def _forgiving(self, source: DatabaseSource) -> ImageSource[Any]:
        return ForgivingSource(source, self._bad_records) if self._bad_records.limit else source

    def _look_at_first_record(self) -> None:
        records = self.open_in_order(announce=True)
        self._entries = records.entries
        with closing(self._forgiving(records)) as source:
            record = source.fetch(0)
            with source.at(0):
                self.first_shape = source.decode(record)[0].shape
            forced = self.param.transform_param.force_color or self.param.transform_param.force_gray
            if forced and not source.is_encoded(record):
                log.error("force_color and force_gray only for encoded datum")
