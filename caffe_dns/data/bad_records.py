"""Skips a few broken records of a database: another record takes the place of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from caffe_dns import log
from caffe_dns.data.datum import Image, IntArray
from caffe_dns.data.raw_records import RawRecords
from caffe_dns.data.sources import ImageSource
from caffe_dns.errors import CaffeError


class BadRecords:
    """Those that were met so far, by what is said of each. At most `limit` are passed over."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._met: set[str] = set()

    def pass_over(self, error: CaffeError) -> None:
        """Log a record when it is met for the first time. Raises `error` if it is one too many."""
        said = str(error)
        if said in self._met:
            return
        if len(self._met) == self.limit:
            if self.limit:
                error.message += f"; {self.limit} were passed over before"
            raise error
        self._met.add(said)
        # Not a warning: other ranks than the first keep these to themselves.
        log.error(f"Skipping bad record {len(self._met)} of at most {self.limit}: {said}")


class ForgivingSource(ImageSource[Any]):
    """The records of another source, without those that cannot be decoded.

    In their place stands the record before in the same batch, or the next one where there is none
    before. Every record is decoded once more to look at it.
    """

    def __init__(self, source: ImageSource[Any], bad: BadRecords) -> None:
        self._source = source
        self._bad = bad
        self.same_channels = source.same_channels

    def fetch(self, record: int) -> Any:
        return self.fetch_all([record])[0]

    def fetch_all(self, records: Sequence[int]) -> Sequence[Any]:
        items = self._source.fetch_all(records)
        good: list[int] = []
        faults: set[str] = set()
        for index, item in enumerate(self._source.load(items)):
            fault = self._fault(item, records[index])
            if fault is None:
                good.append(index)
            else:
                self._bad.pass_over(fault)
                faults.add(str(fault))
        if not faults:
            return items
        if not good:
            return [self._next_good(records[-1], faults)] * len(items)
        chosen = [max((g for g in good if g <= i), default=good[0]) for i in range(len(items))]
        return [items[index] for index in chosen]

    def _fault(self, item: Any, record: int) -> CaffeError | None:
        """What is wrong with an item in memory, which is this record."""
        try:
            self._source.decode(item)
        except CaffeError as error:
            return self._source.explain(error, record)
        return None

    def _next_good(self, record: int, faults: set[str]) -> Any:
        """The first item after this record that can be decoded.

        Raises CaffeError where it comes back to one of the faults, for then there is none.
        """
        while True:
            record += 1
            items = self._source.fetch_all([record])
            fault = self._fault(next(iter(self._source.load(items))), record)
            if fault is None:
                return items[0]
            if str(fault) in faults:
                raise fault
            self._bad.pass_over(fault)
            faults.add(str(fault))

    def decode(self, item: Any) -> tuple[Image, int]:
        return self._source.decode(item)

    def load(self, items: Sequence[Any]) -> Iterable[Any]:
        return self._source.load(items)

    def decode_alike(self, items: Sequence[Any], records: IntArray) -> tuple[Image, Image] | None:
        return self._source.decode_alike(items, records)

    def recall(self, records: IntArray) -> tuple[Image, Image] | None:
        return self._source.recall(records)

    def find_raw(self, items: Sequence[Any]) -> RawRecords | None:
        return self._source.find_raw(items)

    def is_encoded(self, item: Any) -> bool:
        return self._source.is_encoded(item)

    def explain(self, error: CaffeError, record: int) -> CaffeError:
        return self._source.explain(error, record)

    def close(self) -> None:
        self._source.close()
