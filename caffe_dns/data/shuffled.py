"""The records of a database in another order each round."""

from __future__ import annotations

from collections.abc import Sequence

from caffe_dns.data.database import Database
from caffe_dns.data.datum import Buffer, Image, IntArray, parse_alike
from caffe_dns.data.sources import DatabaseSource, Order
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
        # Views of the file: nothing is read yet.
        self._values = [value for _, value in database.records()]
        if not self._values:
            raise CaffeError("the database has no records", file=database.path)
        self._order = Order(len(self._values), seed, stream)

    def fetch(self, record: int) -> Buffer:
        return self._values[self._order.index(record + self._skip)]

    def fetch_all(self, records: Sequence[int]) -> list[Buffer]:
        return [self.fetch(record) for record in records]

    def decode_alike(
        self, items: Sequence[Buffer], records: IntArray
    ) -> tuple[Image, Image] | None:
        # Not kept: what is kept lies in the order of the database.
        return parse_alike(items)

    def close(self) -> None:
        self._values.clear()
        super().close()
