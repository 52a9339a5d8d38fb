"""Where image batches come from: records by number, from a database or elsewhere.

A source knows where record number n is and how to turn it into an image; batches, crops and devices
are not its business. Records are numbered from 0 and never end: a source starts over by itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Generic, TypeVar

from caffe_dns import log, rng
from caffe_dns.data.database import Cursor, Database
from caffe_dns.data.datum import (
    SMALL,
    Buffer,
    DatumDecoder,
    Image,
    IntArray,
    parse_alike,
    parse_table,
)
from caffe_dns.data.decoding import Decoder
from caffe_dns.data.kept_records import KeptRecords
from caffe_dns.data.raw_records import RawRecords, find_raw
from caffe_dns.data.stored import (
    Rows,
    StoredValue,
    StoredValues,
    Value,
    in_memory,
    join,
    load,
)
from caffe_dns.data.transform import ImageShape, shape_text
from caffe_dns.errors import CaffeError

Item = TypeVar("Item")


class ImageSource(ABC, Generic[Item]):
    """Images with labels, by record number."""

    #: Does the same as `decode`, and can be sent to other processes; for items that are values.
    decoder: Decoder | None = None

    @abstractmethod
    def fetch(self, record: int) -> Item:
        """Record number `record`, not yet decoded. Fast if the numbers increase."""

    @abstractmethod
    def decode(self, item: Item) -> tuple[Image, int]:
        """A fetched record as pixels [channels, height, width] and label. Thread-safe."""

    def fetch_all(self, records: Sequence[int]) -> Sequence[Item]:
        """The records with these increasing numbers."""
        return [self.fetch(record) for record in records]

    def load(self, items: Sequence[Item]) -> Iterable[Item]:
        """The items in memory, one after the other. Thread-safe."""
        return items

    def decode_alike(self, items: Sequence[Item], records: IntArray) -> tuple[Image, Image] | None:
        """The items of these records together, or None if each has to be decoded separately.

        Images are [N, channels, height, width], labels [N], both uint8.
        """
        return None

    def recall(self, records: IntArray) -> tuple[Image, Image] | None:
        """What `decode_alike` would give for the next records, if nothing has to be read."""
        return None

    def find_raw(self, items: Sequence[Item]) -> RawRecords | None:
        """Where the items' pixels are, if they need no decoding and have one shape, or None."""
        return None

    @abstractmethod
    def is_encoded(self, item: Item) -> bool:
        """Whether `item` is compressed, so that several threads should share the work."""

    def explain(self, error: CaffeError, record: int) -> CaffeError:
        """An error about record number `record`, with its location."""
        return error

    @contextmanager
    def at(self, record: int) -> Iterator[None]:
        """A context in which errors get this record's location."""
        try:
            yield
        except CaffeError as error:
            raise self.explain(error, record) from None

    def check_alike(self, shape: ImageShape, first: ImageShape, advice: str) -> None:
        """Raise CaffeError unless images of both shapes [channels, height, width] fit in a batch.

        `advice` says what would make them equal if they have the same channels.
        """
        if shape == first:
            return
        if shape[0] != first[0]:
            advice = self.same_channels
        raise CaffeError(
            f"images of {shape_text(shape)} and {shape_text(first)} (channels, height, width) in "
            f"one batch; {advice}"
        )

    #: How to get images with the same number of channels.
    same_channels = "read all of them in colour, or all in gray"

    def close(self) -> None:
        """Release all resources. Items fetched before must not be used afterwards."""


class Order:
    """The order of a list's entries, round after round.

    Without a seed it is the list's order; with a seed it is shuffled in each round, the same on all
    ranks.
    """

    def __init__(self, count: int, seed: int | None = None, stream: str = "") -> None:
        self._count = count
        self._seed = seed
        self._stream = stream
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def index(self, number: int) -> int:
        """The index of entry number `number`, counted from 0 over all rounds."""
        turn, index = divmod(number, self._count)
        return index if self._seed is None else int(self._permutation(turn)[index])

    def _draw_permutation(self, turn: int) -> IntArray:
        assert self._seed is not None
        return rng.numpy_generator(self._seed, self._stream, turn).permutation(self._count)


class DatabaseSource(ImageSource[Value]):
    """The Datums of a database in the order of their keys, over and over (`data_layer.cpp`).

    `skip` records are skipped at the very beginning. Encoded images are decoded as stored, in
    colour or in gray.
    """

    decoder: DatumDecoder

    def __init__(
        self, database: Database, *, skip: int = 0, color: bool = False, gray: bool = False
    ) -> None:
        self._database = database
        self._skip = skip
        self.decoder = DatumDecoder(color, gray)
        self._cursor: Cursor = database.cursor()
        #: The cursor's position: the record number, and the index in the database.
        self._record: int | None = None
        self._index = 0
        self._entries = database.entries()
        self._kept: KeptRecords | None = None

    @property
    def entries(self) -> int | None:
        """The number of records, if known."""
        return self._entries

    def fetch(self, record: int) -> Value:
        self._go_to(record)
        value = self._cursor.take(1)[0]
        self._step()
        self._record = record + 1
        return value

    def fetch_all(self, records: Sequence[int]) -> Sequence[Value]:
        first, last = records[0], records[-1]
        # Each rank reads every n-th record; reading those in between costs less than skipping them.
        step = records[1] - first if len(records) > 1 else 1
        if list(range(first, last + 1, step)) != list(records):
            return super().fetch_all(records)
        values = self._fetch_range(first, last + 1 - first)[::step]
        return in_memory_if_small(values)

    def _fetch_range(self, first: int, count: int) -> Sequence[Value]:
        self._go_to(first)
        pieces: list[Sequence[Value]] = []
        left = count
        while left:
            table = self._cursor.take_table(left)
            pieces.append(self._cursor.take(left) if table is None else Rows(table))
            left -= len(pieces[-1])
            self._index += len(pieces[-1]) - 1
            self._step()
        self._record = first + count
        return join(pieces)

    def _go_to(self, record: int) -> None:
        """Put the cursor on this record."""
        if self._record is None or record < self._record:
            self._seek(record + self._skip)
        else:
            for _ in range(record - self._record):
                self._step()

    def load(self, items: Sequence[Value]) -> Iterator[Buffer]:
        return load(items)

    def decode(self, item: Value) -> tuple[Image, int]:
        return self.decoder.decode(in_memory(item))

    def decode_alike(self, items: Sequence[Value], records: IntArray) -> tuple[Image, Image] | None:
        alike = parse_small(items)
        if alike is not None and self._entries:
            if self._kept is None:
                self._kept = KeptRecords(self._entries)
            self._kept.put(records + self._skip, *alike)
        return alike

    def recall(self, records: IntArray) -> tuple[Image, Image] | None:
        if self._kept is None or not self._kept.complete:
            return None
        assert self._record is not None
        assert self._entries is not None
        before, self._record = self._record, int(records[-1]) + 1
        turns = [(record + self._skip) // self._entries for record in (before, self._record)]
        for _ in range(turns[1] - turns[0]):
            self._announce_restart()
        return self._kept.get(records + self._skip)

    def find_raw(self, items: Sequence[Value]) -> RawRecords | None:
        return find_raw(items)

    def is_encoded(self, item: Value) -> bool:
        return self.decoder.parse(in_memory(item)).encoded

    same_channels = (
        "`transform_param { force_color: true }` decodes encoded images alike; of pixels, make the "
        "database anew, with -gray or without"
    )

    def explain(self, error: CaffeError, record: int) -> CaffeError:
        if error.file is not None:  # errors here are not about the record
            return error
        return self._database.explain(error, self._index_of(record))

    def close(self) -> None:
        self._database.close()

    def _index_of(self, record: int) -> int:
        """The index of this record in the database."""
        index = record + self._skip
        return index % (self._entries or index + 1)

    def _seek(self, steps: int) -> None:
        """Go to the record `steps` after the first, in a later round if necessary."""
        self._rewind()
        while steps:
            if self._entries:
                steps %= self._entries
            done = self._cursor.skip(steps)
            self._index += done
            if done < steps:
                self._end_round()
                done += 1
            steps -= done

    def _step(self) -> None:
        if not self._next():
            self._announce_restart()

    def _announce_restart(self) -> None:
        log.info("Restarting data prefetching from start.")

    def _next(self) -> bool:
        """Go to the next record; False if that is the first one again."""
        if self._cursor.next():
            self._index += 1
            return True
        self._end_round()
        return False

    def _end_round(self) -> None:
        """Go from the last record to the first; the number of entries is now known."""
        self._entries = self._index + 1
        self._rewind()

    def _rewind(self) -> None:
        if not self._cursor.first():
            raise CaffeError("the database has no records", file=self._database.path)
        self._index = 0


def in_memory_if_small(values: Sequence[Value]) -> Sequence[Value]:
    """Small values, read together; large ones are left to the threads that decode them."""
    if isinstance(values, StoredValues):
        small = values.sizes.max() <= SMALL
    else:
        small = isinstance(values[0], StoredValue) and max(map(len, values)) <= SMALL
    return list(load(values, keep=True)) if small else values


def parse_small(values: Sequence[Value]) -> tuple[Image, Image] | None:
    """The result of `parse_alike` for the values, or None if some have not been read."""
    if isinstance(values, Rows):
        return parse_table(values.table)
    if isinstance(values, StoredValues):
        return None
    there = [value for value in values if not isinstance(value, StoredValue)]
    return parse_alike(there) if len(there) == len(values) else None
