"""LMDB databases, read without LMDB (`util/db_lmdb.cpp`).

Nothing in the folder is touched or locked, so a database can be read by several programs and
without write permission. It must not be written to meanwhile. Nothing in the file is believed: each
page is checked when it is read, and a walk through the tree ends, whatever the file says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from caffe_dns.data.database import Cursor, Database
from caffe_dns.data.datum import Buffer
from caffe_dns.data.lmdb_pages import (
    HEADER_SIZE,
    META_SIZE,
    Leaf,
    Meta,
    branch_pages,
    check_overflow,
    parse_meta,
)
from caffe_dns.data.stored import StoredFile, StoredValue, Value
from caffe_dns.errors import CaffeError

#: Leaves that follow one another are read so many at once.
_AT_ONCE = 16


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
    """A place among the records: a leaf page, and an index there."""

    def __init__(self, file: StoredFile, meta: Meta) -> None:
        self._file = file
        self._meta = meta
        self._leaves: Iterator[Leaf] = iter(())
        self._leaf: Leaf | None = None
        self._found: tuple[list[bytes], list[Value]] | None = None
        self._index = 0

    def first(self) -> bool:
        self._leaves = _leaves(self._file, self._meta)
        return self._next_leaf()

    def next(self) -> bool:
        leaf = self._leaf
        if leaf is not None and self._index + 1 < leaf.size:
            self._index += 1
            return True
        return self._next_leaf()

    def skip(self, count: int) -> int:
        done = 0
        while self._leaf is not None:
            steps = min(count - done, self._leaf.size - 1 - self._index)
            self._index += steps
            done += steps
            if done == count:
                break
            done += self._next_leaf()
        return done

    def key(self) -> bytes:
        return self._records()[0][self._index]

    def value(self) -> Buffer:
        value = self._records()[1][self._index]
        return value.read() if isinstance(value, StoredValue) else value

    def take(self, count: int) -> list[Value]:
        values = self._records()[1][self._index : self._index + count]
        self._index += len(values) - 1
        while len(values) < count and self._next_leaf():
            some = self._records()[1][: count - len(values)]
            values += some
            self._index = len(some) - 1
        return values

    def _next_leaf(self) -> bool:
        self._found = None
        self._index = 0
        try:
            self._leaf = next(self._leaves, None)
        except CaffeError as error:
            raise error.locate(file=self._file.path) from None
        return self._leaf is not None

    def _records(self) -> tuple[list[bytes], list[Value]]:
        """Keys and values of the leaf, which are looked at only where they are needed."""
        if self._found is None:
            if self._leaf is None:
                raise ValueError("the cursor is on no record")
            try:
                keys, values = self._leaf.records(self._overflow)
            except CaffeError as error:
                raise error.locate(file=self._file.path) from None
            self._found = keys, [*values]
        return self._found

    def _overflow(self, page: int, size: int) -> OverflowValue:
        page_size = self._meta.page_size
        last_page = page + (HEADER_SIZE + size - 1) // page_size
        if page < 2 or last_page > self._meta.last_page:
            raise CaffeError(
                f"is damaged: pages {page} to {last_page} would hold a value, and "
                f"{self._meta.last_page} is the last"
            )
        return OverflowValue(self._file, page * page_size + HEADER_SIZE, size, page_size)


@dataclass(slots=True)
class OverflowValue(StoredValue):
    """A value in overflow pages."""

    header_size = HEADER_SIZE
    page_size: int

    def check(self, header: memoryview) -> None:
        try:
            check_overflow(header, self.start // self.page_size, self.size, self.page_size)
        except CaffeError as error:
            raise error.locate(file=self.file.path) from None


def _newest_meta(file: StoredFile) -> Meta:
    """What the newer of the first two pages says."""
    meta = parse_meta(file.read(0, min(META_SIZE, file.size)), 0)
    try:
        other = parse_meta(file.read(meta.page_size, META_SIZE), 1)
    except CaffeError:
        # They are written in turn, and a power failure can spoil one of them.
        other = meta
    meta = max(meta, other, key=lambda each: each.transaction)
    expected = (meta.last_page + 1) * meta.page_size
    if file.size < expected:
        raise CaffeError(f"is cut short: data.mdb has {file.size} of {expected} bytes")
    return meta


def _leaves(file: StoredFile, meta: Meta) -> Iterator[Leaf]:
    """The leaves of the tree from left to right.

    All leaves are equally deep and their keys increase, so none can come twice, and there are no
    more records than the file says.
    """
    pages = _Pages(file, meta)
    levels = [iter([meta.root] if meta.depth else [])]
    last_key = b""
    records = 0
    while levels:
        number = next(levels[-1], None)
        if number is None:
            levels.pop()
            continue
        data = pages.read(number)
        if len(levels) < meta.depth:
            levels.append(iter(branch_pages(data, number)))
            continue
        leaf = Leaf(data, number)
        first, last = leaf.ends()
        if not last_key < first <= last:
            raise CaffeError(f"is damaged at page {number}: its keys are not in order")
        last_key = last
        records += leaf.size
        if records > meta.entries:
            break
        yield leaf
    if records != meta.entries:
        raise CaffeError(f"is damaged: it claims {meta.entries} records, and has {records} or more")


class _Pages:
    """Single pages; those that follow one another are read several at once."""

    def __init__(self, file: StoredFile, meta: Meta) -> None:
        self._file = file
        self._size = meta.page_size
        self._last = meta.last_page
        self._read = memoryview(b"")
        #: The first of the pages that were read.
        self._first = 0

    def read(self, number: int) -> memoryview:
        if not 2 <= number <= self._last:
            raise CaffeError(f"is damaged: it names page {number}, and there are 2 to {self._last}")
        end = self._first + len(self._read) // self._size
        if not self._first <= number < end:
            count = min(_AT_ONCE, self._last + 1 - number) if number == end else 1
            self._first = number
            self._read = memoryview(self._file.read(number * self._size, count * self._size))
        start = (number - self._first) * self._size
        return self._read[start : start + self._size]
