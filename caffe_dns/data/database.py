"""The interface of a database: a cursor for reading, transactions for writing (`util/db.hpp`).

LMDB and LevelDB implement it in modules of their own. What the records mean is not known here.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np

from caffe_dns.data.datum import Buffer
from caffe_dns.data.stored import Rows, Value
from caffe_dns.errors import CaffeError
from caffe_dns.files import sync_folder

#: Values of one size as rows of bytes.
Table: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

#: How many values are taken at a time: small ones of one size, and others.
_MANY, _FEW = 1024, 64
#: Bytes of values that a writer keeps in memory until a commit.
MOST_PENDING = 64 << 20

_Self = TypeVar("_Self", bound="_Closing")


class _Closing(ABC):
    """Something that a `with` statement closes."""

    @abstractmethod
    def close(self) -> None:
        """Give back what is held. Closing twice does nothing."""

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Cursor(ABC):
    """A position among the records of a database, which are ordered by key."""

    @abstractmethod
    def first(self) -> bool:
        """Go to the first record; False if there is none."""

    @abstractmethod
    def next(self) -> bool:
        """Go to the next record; False at the end, where the cursor is invalid."""

    def skip(self, count: int) -> int:
        """Advance by `count` records; returns how many, fewer at the end, where it is invalid."""
        return next((done for done in range(count) if not self.next()), count)

    @abstractmethod
    def key(self) -> bytes:
        """The key here."""

    @abstractmethod
    def value(self) -> bytes | memoryview:
        """The value here. Views are valid until the database is closed."""

    def take_table(self, count: int) -> Table | None:
        """Like `take`, as rows [N, size] of uint8, or None without moving the cursor.

        There may be fewer rows. None if values are large, or not all of one size.
        """
        return None

    def take(self, count: int) -> Sequence[Value]:
        """The next `count` values, or up to the end; leaves the cursor at the last one.

        Large ones may not have been read yet.
        """
        values: list[Value] = [self.value()]
        while len(values) < count and self.next():
            values.append(self.value())
        return values


class Database(_Closing):
    """A database open for reading. Values that were read must not be used after `close`."""

    def __init__(self, path: str) -> None:
        self.path = path

    @abstractmethod
    def cursor(self) -> Cursor:
        """A new cursor, not yet on a record."""

    @abstractmethod
    def entries(self) -> int | None:
        """The number of records, or None if they would have to be counted (LevelDB)."""

    def explain(self, error: CaffeError, index: int) -> CaffeError:
        """An error about the record at `index`, with its location."""
        cursor = self.cursor()
        found = cursor.first() and cursor.skip(index) == index
        key = cursor.key() if found else b""
        return CaffeError(
            f"record {index} (key {os.fsdecode(key)!r}): {error.message}",
            file=self.path,
            layer=error.layer,
            field=error.field,
        )

    def records(self) -> Iterator[tuple[bytes, bytes | memoryview]]:
        """All keys and values in order."""
        cursor = self.cursor()
        found = cursor.first()
        while found:
            yield cursor.key(), cursor.value()
            found = cursor.next()

    def batches(self) -> Iterator[Sequence[Value]]:
        """All values in order, many at a time; large ones may not have been read yet."""
        cursor = self.cursor()
        found = cursor.first()
        while found:
            table = cursor.take_table(_MANY)
            yield cursor.take(_FEW) if table is None else Rows(table)
            found = cursor.next()


class Writer(_Closing):
    """A new database, which appears under its name when it is closed without an error.

    Until then the records lie in a hidden folder beside it; on an error that folder is removed.
    """

    def __init__(self) -> None:
        self._pending: dict[bytes, Buffer] = {}
        self._pending_bytes = 0

    def put(self, key: bytes, value: Buffer) -> None:
        """Add a record to the current transaction, which is written once it has become large."""
        self._pending[key] = value
        self._pending_bytes += len(value)
        if self._pending_bytes > MOST_PENDING:
            self.commit()

    def commit(self) -> None:
        """Write the current transaction."""
        self._write(self._pending)
        self._pending.clear()
        self._pending_bytes = 0

    @abstractmethod
    def _write(self, records: dict[bytes, Buffer]) -> None:
        """Put some records into the database. Raises CaffeError."""

    @abstractmethod
    def abort(self) -> None:
        """Throw the whole database away."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def publish(temporary: Path, path: Path) -> None:
    """Give a finished database its name, so that it lasts."""
    os.rename(temporary, path)
    sync_folder(path.absolute().parent)
