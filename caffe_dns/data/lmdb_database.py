"""LMDB databases, read without LMDB (`util/db_lmdb.cpp`).

Nothing in the folder is changed or locked, so a database can be read by several programs and
without write permission. It must not be written to meanwhile. Nothing in the file is trusted: each
page is checked when it is read, and a walk through the tree ends, whatever the file says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from caffe_dns.data.database import Cursor, Database, Table
from caffe_dns.data.datum import Buffer
from caffe_dns.data.lmdb_pages import (
    HEADER_SIZE,
    META_SIZE,
    IntArray,
    Leaves,
    Meta,
    branch_pages,
    check_overflow,
    parse_meta,
)
from caffe_dns.data.stored import (
    ByteArray,
    StoredFile,
    StoredValue,
    StoredValues,
    Value,
    in_memory,
    join,
    new_memory,
)
from caffe_dns.errors import CaffeError

#: Bytes of leaves that are read and decoded at once.
_AT_ONCE = 1 << 20


class LMDB(Database):
    """An LMDB open for reading."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._file = StoredFile(os.path.join(path, "data.mdb"))
        try:
            self._meta = _newest_meta(self._file)
        except CaffeError as error:
            self._file.close()
            raise CaffeError(f"cannot be read as an LMDB: {error.message}", file=path) from None

    def cursor(self) -> Cursor:
        return _LMDBCursor(self._file, self._meta)

    def entries(self) -> int:
        return self._meta.entries

    def close(self) -> None:
        self._file.close()


class _LMDBCursor(Cursor):
    """A place among the records: some leaf pages, and an index there."""

    def __init__(self, file: StoredFile, meta: Meta) -> None:
        self._file = file
        self._meta = meta
        self._leaves: Iterator[Leaves] = iter(())
        self._here: Leaves | None = None
        self._is_checked = False
        self._values: Sequence[Value] | None = None
        self._index = 0

    def first(self) -> bool:
        self._leaves = _leaves(self._file, self._meta)
        return self._next_leaves()

    def next(self) -> bool:
        here = self._here
        if here is not None and self._index + 1 < here.size:
            self._index += 1
            return True
        return self._next_leaves()

    def skip(self, count: int) -> int:
        done = 0
        while self._here is not None:
            steps = min(count - done, self._here.size - 1 - self._index)
            self._index += steps
            done += steps
            if done == count:
                break
            done += self._next_leaves()
        return done

    def key(self) -> bytes:
        return self._checked().key(self._index)

    def value(self) -> Buffer:
        return in_memory(self._all_values()[self._index])

    def take(self, count: int) -> Sequence[Value]:
        pieces: list[Sequence[Value]] = []
        while True:
            here = self._checked()
            end = min(self._index + count, here.size)
            pieces.append(self._values_of(here, slice(self._index, end)))
            count -= end - self._index
            self._index = end - 1
            if not count or not self._next_leaves():
                return join(pieces)

    def take_table(self, count: int) -> Table | None:
        table = self._checked().table
        if table is None:
            return None
        rows = table[self._index : self._index + count]
        self._index += len(rows) - 1
        return rows

    def _next_leaves(self) -> bool:
        self._values = None
        self._is_checked = False
        self._index = 0
        with self._about_file():
            self._here = next(self._leaves, None)
        return self._here is not None

    def _checked(self) -> Leaves:
        """The leaves here, whose records are looked at only where they are needed."""
        if self._here is None:
            raise ValueError("the cursor is on no record")
        if not self._is_checked:
            with self._about_file():
                self._here.check()
            self._is_checked = True
        return self._here

    def _all_values(self) -> Sequence[Value]:
        """The values of the leaves here."""
        if self._values is None:
            self._values = self._values_of(self._checked(), slice(None))
        return self._values

    def _values_of(self, leaves: Leaves, some: slice) -> Sequence[Value]:
        with self._about_file():
            return leaves.values(self._overflow, some)

    @contextmanager
    def _about_file(self) -> Iterator[None]:
        """Within it, errors are about the file."""
        try:
            yield
        except CaffeError as error:
            raise error.locate(file=self._file.path) from None

    def _overflow(self, pages: IntArray, sizes: IntArray) -> StoredValues:
        page_size, last = self._meta.page_size, self._meta.last_page
        more = ((HEADER_SIZE + sizes - 1) // page_size).astype(np.uint64)
        wrong = (pages < 2) | (pages > last) | (pages + more > last)
        for index in wrong.nonzero()[0].tolist():
            first = int(pages[index])
            raise CaffeError(
                f"is damaged: pages {first} to {first + int(more[index])} would hold a value, and "
                f"{last} is the last"
            )
        starts = (pages * page_size + HEADER_SIZE).astype(np.int64)
        kind = OverflowValue(self._file, 0, 0, page_size)
        return StoredValues(kind, starts, sizes.astype(np.int64))


@dataclass(slots=True)
class OverflowValue(StoredValue):
    """A value in overflow pages."""

    header_size = HEADER_SIZE
    page_size: int

    def check(self, headers: ByteArray, starts: IntArray, sizes: IntArray) -> None:
        try:
            check_overflow(headers, starts // self.page_size, sizes, self.page_size)
        except CaffeError as error:
            raise error.locate(file=self.file.path) from None


def _newest_meta(file: StoredFile) -> Meta:
    """What the newer of the first two pages says."""
    meta = parse_meta(file.read(0, min(META_SIZE, file.size)), 0)
    if file.size >= meta.page_size + META_SIZE:
        other = file.read(meta.page_size, META_SIZE)
        # They are written in turn, and a power failure can spoil one of them.
        with suppress(CaffeError):
            meta = max(meta, parse_meta(other, 1), key=lambda each: each.transaction)
    expected = (meta.last_page + 1) * meta.page_size
    if file.size < expected:
        raise CaffeError(f"is cut short: data.mdb has {file.size} of {expected} bytes")
    return meta


def _leaves(file: StoredFile, meta: Meta) -> Iterator[Leaves]:
    """The leaves of the tree from left to right, some at a time.

    All leaves are equally deep and their keys increase, so none can come twice, and there are no
    more records than the file says.
    """
    pages = _Pages(file, meta)
    levels = [iter([[meta.root]] if meta.depth else [])]
    last_key = b""
    records = 0
    while levels:
        numbers = next(levels[-1], None)
        if numbers is None:
            levels.pop()
            continue
        data = pages.read(numbers)
        if len(levels) < meta.depth:
            below = branch_pages(data, numbers[0])
            size = _AT_ONCE // meta.page_size if len(levels) + 1 == meta.depth else 1
            levels.append(iter([below[at : at + size] for at in range(0, len(below), size)]))
            continue
        leaves = Leaves(data, numbers, meta.page_size)
        first, last = leaves.ends()
        if not last_key < first <= last:
            raise CaffeError(f"is damaged at page {numbers[0]}: its keys are not in order")
        last_key = last
        records += leaves.size
        if records > meta.entries:
            break
        yield leaves
    if records != meta.entries:
        raise CaffeError(f"is damaged: it claims {meta.entries} records, and has {records} or more")


class _Pages:
    """Pages by their numbers. Those that lie one after the other are read at once."""

    def __init__(self, file: StoredFile, meta: Meta) -> None:
        self._file = file
        self._size = meta.page_size
        self._last = meta.last_page

    def read(self, numbers: Sequence[int]) -> memoryview:
        """The pages, one after the other."""
        if not 2 <= min(numbers) <= max(numbers) <= self._last:
            wrong = next(number for number in numbers if not 2 <= number <= self._last)
            raise CaffeError(f"is damaged: it names page {wrong}, and there are 2 to {self._last}")
        memory = new_memory(len(numbers) * self._size)
        first = 0
        for end in range(1, len(numbers) + 1):
            if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
                piece = memory[first * self._size : end * self._size]
                self._file.read_into(piece, numbers[first] * self._size)
                first = end
        return memory
