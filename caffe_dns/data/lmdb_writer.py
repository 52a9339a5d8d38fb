"""Writing LMDB databases, through the lmdb package (`util/db_lmdb.cpp`)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lmdb

from caffe_dns.data.database import Writer, publish
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files import temporary_beside

#: Size of a new map; doubled whenever it is full, as Caffe does.
_FIRST_MAP_SIZE = 10 << 20
#: Bytes of records that are kept in memory until a commit; more are written at once.
_MOST_PENDING = 64 << 20


class LMDBWriter(Writer):
    """A new LMDB."""

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._temporary = temporary_beside(self._path)
        self._pending: list[tuple[bytes, bytes]] = []
        self._pending_bytes = 0
        self._environment: lmdb.Environment | None = None
        try:
            self._temporary.mkdir()
            self._environment = lmdb.open(
                os.fsencode(self._temporary), map_size=_FIRST_MAP_SIZE, lock=False, sync=False
            )
        except (lmdb.Error, OSError) as error:
            self.abort()
            what = error.strerror if isinstance(error, OSError) else first_line(error)
            raise CaffeError(f"cannot be made: {what}", file=path) from None

    def put(self, key: bytes, value: bytes) -> None:
        self._pending.append((key, value))
        self._pending_bytes += len(value)
        if self._pending_bytes > _MOST_PENDING:
            self.commit()

    def commit(self) -> None:
        while not self._try_commit():
            environment = self._opened()
            environment.set_mapsize(environment.info()["map_size"] * 2)
        self._pending.clear()
        self._pending_bytes = 0

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
