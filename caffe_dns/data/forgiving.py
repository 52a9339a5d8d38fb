"""Going on where a few records of a database are broken: another record stands in for each."""

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
        log.error(f"Passing over bad record {len(self._met)} of at most {self.limit}: {said}")


class ForgivingSource(ImageSource[Any]):
    """The records of another source, without those that cannot be decoded.

    In their place stands the record before in the same batch, or the one behind where there is
    none before. Every record is decoded once more to look at it.
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
        last: CaffeError | None = None
        for index, item in enumerate(self._source.load(items)):
            try:
                self._source.decode(item)
                good.append(index)
            except CaffeError as error:
                last = self._source.explain(error, records[index])
                self._bad.pass_over(last)
        if last is None:
            return items
        if not good:
            raise last  # with nothing to stand in for it
        chosen = [max((g for g in good if g <= i), default=good[0]) for i in range(len(items))]
        return [items[index] for index in chosen]

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
