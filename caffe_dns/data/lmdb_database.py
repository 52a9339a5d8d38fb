"""LMDB databases, through the lmdb package (`util/db_lmdb.cpp`)."""

from __future__ import annotations

import os
import shutil
import threading
from itertools import islice
from pathlib import Path
from typing import ClassVar

import lmdb

from caffe_dns.data.database import Cursor, Database, Writer, publish
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files import temporary_beside

#: Size of a new map; doubled whenever it is full, as Caffe does.
_FIRST_MAP_SIZE = 10 << 20


class _SharedEnvironment:
    """The environment of all readers of one folder: LMDB forbids a process to open it twice."""

    _all: ClassVar[dict[tuple[int, int], _SharedEnvironment]] = {}
    _lock = threading.Lock()

    def __init__(self, path: str, key: tuple[int, int]) -> None:
        # Caffe's databases do not change while they are read, so no lock file is needed, and a
        # folder without write permission will do.
        self.environment = lmdb.open(os.fsencode(path), readonly=True, create=False, lock=False)
        try:
            self._check_size(path)
        except CaffeError:
            self.environment.close()
            raise
        self._key = key
        self._users = 0

    def _check_size(self, path: str) -> None:
        """Raise CaffeError if the file ends too early: reading on there would kill the process."""
        pages = self.environment.info()["last_pgno"] + 1
        expected = pages * self.environment.stat()["psize"]
        size = os.path.getsize(os.path.join(path, "data.mdb"))
        if size < expected:
            raise CaffeError(f"is cut short: data.mdb has {size} of {expected} bytes", file=path)

    @classmethod
    def acquire(cls, path: str) -> _SharedEnvironment:
        found = os.stat(os.path.join(path, "data.mdb"))
        key = (found.st_dev, found.st_ino)
        with cls._lock:
            shared = cls._all.get(key)
            if shared is None:
                shared = cls._all[key] = cls(path, key)
            shared._users += 1
            return shared

    def release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                del self._all[self._key]
                self.environment.close()


class LMDB(Database):
    """An LMDB open for reading."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._transaction: lmdb.Transaction | None = None
        try:
            self._shared = _SharedEnvironment.acquire(path)
        except (lmdb.Error, OSError) as error:
            raise CaffeError(f"cannot be read as an LMDB: {first_line(error)}", file=path) from None
        self._transaction = self._shared.environment.begin(buffers=True)

    def cursor(self) -> Cursor:
        if self._transaction is None:
            raise ValueError(f"{self.path} is closed")
        return _LMDBCursor(self._transaction.cursor())

    def entries(self) -> int:
        return int(self._shared.environment.stat()["entries"])

    def close(self) -> None:
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = None
            self._shared.release()


class _LMDBCursor(Cursor):
    def __init__(self, cursor: lmdb.Cursor) -> None:
        self._cursor = cursor
        # The library's own methods, with no call in between: reading spends its time here.
        self.next = cursor.next  # type: ignore[method-assign]
        self.value = cursor.value  # type: ignore[method-assign]

    def first(self) -> bool:
        return bool(self._cursor.first())

    def next(self) -> bool:
        return bool(self._cursor.next())

    def key(self) -> bytes:
        return bytes(self._cursor.key())

    def value(self) -> bytes | memoryview:
        return self._cursor.value()

    def take(self, count: int) -> list[bytes | memoryview]:
        return list(islice(self._cursor.iternext(keys=False, values=True), count))


class LMDBWriter(Writer):
    """A new LMDB."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._temporary = temporary_beside(self._path)
        self._pending: list[tuple[bytes, bytes]] = []
        self._environment: lmdb.Environment | None = None
        try:
            self._temporary.mkdir()
            self._environment = lmdb.open(
                os.fsencode(self._temporary), map_size=_FIRST_MAP_SIZE, lock=False, sync=False
            )
        except (lmdb.Error, OSError) as error:
            self.abort()
            raise CaffeError(f"cannot be made: {first_line(error)}", file=path) from None

    def put(self, key: bytes, value: bytes) -> None:
        self._pending.append((key, value))

    def commit(self) -> None:
        while not self._try_commit():
            environment = self._opened()
            environment.set_mapsize(environment.info()["map_size"] * 2)
        self._pending.clear()

    def close(self) -> None:
        if self._environment is None:
            return
        try:
            self.commit()
            self._environment.sync(True)
            self._environment.close()
            self._environment = None
            publish(self._temporary, self._path)
        except (lmdb.Error, OSError) as error:
            raise CaffeError(
                f"cannot be written: {first_line(error)}", file=str(self._path)
            ) from None
        finally:
            self.abort()

    def abort(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _opened(self) -> lmdb.Environment:
        if self._environment is None:
            raise ValueError(f"{self._path} is closed")
        return self._environment

    def _try_commit(self) -> bool:
        """Write what is pending; False if the map is too small for it."""
        try:
            with self._opened().begin(write=True) as transaction:
                for key, value in self._pending:
                    transaction.put(key, value)
        except lmdb.MapFullError:
            return False
        except lmdb.Error as error:
            raise CaffeError(
                f"cannot be written: {first_line(error)}", file=str(self._path)
            ) from None
        return True
