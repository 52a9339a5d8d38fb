"""The records of a database in a different order each round."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns.data.database import Database
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.sources import DatabaseSource, Order, in_memory_if_small, parse_small
from caffe_dns.data.stored import Value

#: More records than any database has.
_ALL = 1 << 62


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
        self._rewind()
        # Large ones are not read yet.
        self._values: Sequence[Value] = self._cursor.take(_ALL)
        self._order = Order(len(self._values), seed, stream)

    def fetch(self, record: int) -> Value:
        return self._values[self._index_of(record)]

    def fetch_all(self, records: Sequence[int]) -> Sequence[Value]:
        return in_memory_if_small([self.fetch(record) for record in records])

    def decode_alike(self, items: Sequence[Value], records: IntArray) -> tuple[Image, Image] | None:
        # Not kept: what is kept lies in the order of the database.
        return parse_small(items)

    def _index_of(self, record: int) -> int:
        return self._order.index(record + self._skip)

    def close(self) -> None:
        self._values = ()
        super().close()
