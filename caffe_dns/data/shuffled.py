"""The records of a database in another order each round."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from caffe_dns.data.database import Database
from caffe_dns.data.datum import SMALL, Image, IntArray, parse_alike
from caffe_dns.data.sources import DatabaseSource, Order
from caffe_dns.data.stored import StoredValue, Value, load
from caffe_dns.errors import CaffeError


class ShuffledSource(DatabaseSource):
    """A DatabaseSource in orders that are drawn from a seed, the same on all ranks.

    It looks at every record once at the beginning, to know where each lies.
    """

    def __init__(
        self,
        database: Database,
        seed: int,
        stream: str,
        *,
        skip: int = 0,
        color: bool = False,
        gray: bool = False,
    ) -> None:
        super().__init__(database, skip=skip, color=color, gray=gray)
        # Where large values lie in the file: they are not read yet.
        cursor = database.cursor()
        self._values = cursor.take(sys.maxsize) if cursor.first() else []
        if not self._values:
            raise CaffeError("the database has no records", file=database.path)
        self._order = Order(len(self._values), seed, stream)

    def fetch(self, record: int) -> Value:
        return self._values[self._order.index(record + self._skip)]

    def fetch_all(self, records: Sequence[int]) -> list[Value]:
        values = [self.fetch(record) for record in records]
        small = max(map(len, values)) <= SMALL
        return list(load(values, keep=True)) if small else values

    def decode_alike(self, items: Sequence[Value], records: IntArray) -> tuple[Image, Image] | None:
        # Not kept: what is kept lies in the order of the database.
        in_memory = [item for item in items if not isinstance(item, StoredValue)]
        return parse_alike(in_memory) if len(in_memory) == len(items) else None

    def close(self) -> None:
        self._values.clear()
        super().close()
