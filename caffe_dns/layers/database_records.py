"""What layers that read a database have in common: which one, from where, in which order."""

from __future__ import annotations

from caffe_dns.data.db import open_database
from caffe_dns.data.shuffled import ShuffledSource
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.layers.batch_data import BatchDataLayer
from caffe_dns.proto.caffe_pb2 import DataParameter


class DatabaseRecords(BatchDataLayer):
    """A layer on the records of the database that its data_param names.

    Fewer than `rand_skip` records are skipped at the beginning, by a draw that all ranks share.
    With `shuffle` each round has an order of its own, drawn from the seed.
    """

    def check_database(self) -> None:
        """Raise CaffeError for settings that name no database, or cannot be used with it."""
        settings = self.param.data_param
        if not settings.source:
            raise self.error("must name a database", "data_param.source")
        self.check_batch_size("data_param.batch_size")
        if settings.shuffle and settings.backend != DataParameter.LMDB:
            raise self.error("needs an LMDB (backend: LMDB)", "data_param.shuffle")

    def open_in_order(self, *, announce: bool = False) -> DatabaseSource:
        """The records in the order of their keys."""
        settings, transform = self.param.data_param, self.param.transform_param
        return DatabaseSource(
            open_database(settings.source, self._backend, announce=announce),
            skip=self.draw_skip(settings.rand_skip),
            color=transform.force_color or settings.force_encoded_color,
            gray=transform.force_gray,
        )

    def open_records(self) -> DatabaseSource:
        """The records in the order that the definition asks for."""
        settings, transform = self.param.data_param, self.param.transform_param
        if not settings.shuffle:
            return self.open_in_order()
        return ShuffledSource(
            open_database(settings.source, self._backend, announce=False),
            self.context.seed,
            f"shuffle/{self.name}",
            skip=self.draw_skip(settings.rand_skip),
            color=transform.force_color or settings.force_encoded_color,
            gray=transform.force_gray,
        )

    @property
    def _backend(self) -> str:
        return DataParameter.DB.Name(self.param.data_param.backend).lower()
