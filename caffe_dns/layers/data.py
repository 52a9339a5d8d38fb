"""Data: the records of an LMDB or LevelDB database (`data_layer.cpp`)."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from caffe_dns import log
from caffe_dns.data.batches import ImageBatches, Share
from caffe_dns.data.database import Database
from caffe_dns.data.db import open_database
from caffe_dns.data.shuffled import ShuffledSource
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context, count, layer_types
from caffe_dns.layers.batch_data import ImageBatchLayer
from caffe_dns.proto.caffe_pb2 import DataParameter, LayerParameter

#: Small batches are read together up to this number, and up to this many bytes of pixels.
MOST_AT_ONCE, BYTES_AT_ONCE = 32, 4 << 20


@layer_types.register("Data")
class Data(ImageBatchLayer):
    """Images and labels from a database, in the order of the keys, over and over.

    Fewer than `rand_skip` records are left out at the beginning, by a draw that all ranks share.
    With `shuffle` each round has an order of its own, drawn from the seed.
    """

    def __init__(self, param: LayerParameter, context: Context) -> None:
        super().__init__(param, context)
        self.batch_size = param.data_param.batch_size
        if not param.data_param.source:
            raise self.error("must name a database", "data_param.source")
        self.check_batch_size("data_param.batch_size")
        if param.data_param.rand_skip:
            skip = self.draw_skip(param.data_param.rand_skip)
            log.info(f"Skipping first {skip} data points.")
        # Not left to setup: in Caffe's log this comes before "Creating Layer".
        try:
            self._look_at_first_record()
        except CaffeError as error:
            raise error.locate(layer=self.name) from None

    def reader(self, share: Share, *, pin: bool) -> ImageBatches:
        source = self._open_shuffled() if self.param.data_param.shuffle else self._open()
        size = self.batch_size * self.batches_at_once
        return ImageBatches(source, self.transform, self.draws(), share, size, for_gpu=pin)

    @property
    def batches_at_once(self) -> int:
        # A GPU takes a small batch in less time than Python needs to hand it over.
        if self.context.device.type != "cuda":
            return 1
        return max(1, min(MOST_AT_ONCE, BYTES_AT_ONCE // count(self._shape)))

    def _look_at_first_record(self) -> None:
        if self.param.data_param.shuffle and self.param.data_param.backend != DataParameter.LMDB:
            raise self.error("needs an LMDB (backend: LMDB)", "data_param.shuffle")
        with closing(self._open(announce=True)) as source:
            record = source.fetch(0)
            self.first_shape = source.decode(record)[0].shape
            forced = self.param.transform_param.force_color or self.param.transform_param.force_gray
            if forced and not source.is_encoded(record):
                log.error("force_color and force_gray only for encoded datum")

    def _open(self, *, announce: bool = False) -> DatabaseSource:
        return DatabaseSource(self._database(announce=announce), **self._settings())

    def _open_shuffled(self) -> DatabaseSource:
        stream = f"shuffle/{self.name}"
        database = self._database(announce=False)
        return ShuffledSource(database, self.context.seed, stream, **self._settings())

    def _database(self, *, announce: bool) -> Database:
        settings = self.param.data_param
        backend = DataParameter.DB.Name(settings.backend).lower()
        return open_database(settings.source, backend, announce=announce)

    def _settings(self) -> dict[str, Any]:
        settings, transform = self.param.data_param, self.param.transform_param
        return {
            "skip": self.draw_skip(settings.rand_skip),
            "color": transform.force_color or settings.force_encoded_color,
            "gray": transform.force_gray,
        }
