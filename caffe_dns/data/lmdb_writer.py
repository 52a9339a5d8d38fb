"""Writes LMDB databases, with the lmdb package (`util/db_lmdb.cpp`)."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import lmdb

from caffe_dns.data.database import Writer, publish
from caffe_dns.data.datum import Buffer
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files import sync, temporary_beside, try_place

#: Size of a new map; doubled whenever it is full, as Caffe does.
_FIRST_MAP_SIZE = 10 << 20


class LMDBWriter(Writer):
    """A new LMDB."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self._temporary = temporary_beside(self._path)
        self._environment: lmdb.Environment | None = None
        try:
            try_place(self._path)
            self._temporary.mkdir()
            self._environment = lmdb.open(
                os.fsencode(self._temporary), map_size=_FIRST_MAP_SIZE, lock=False, sync=False
            )
        except (lmdb.Error, OSError) as error:
            self.abort()
            raise CaffeError(f"cannot be made: {_reason(error)}", file=path) from None

    def _write(self, records: dict[bytes, Buffer]) -> None:
        while not self._try_write(records):
            environment = self._opened()
            environment.set_mapsize(environment.info()["map_size"] * 2)

    def close(self) -> None:
        if self._environment is None:
            return
        try:
            self.commit()
            self._opened().close()
            self._environment = None
            with open(self._temporary / "data.mdb", "rb") as file:
                sync(file.fileno())
            publish(self._temporary, self._path)
        except (lmdb.Error, OSError) as error:
            raise CaffeError(f"cannot be written: {_reason(error)}", file=str(self._path)) from None
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

    def _try_write(self, records: dict[bytes, Buffer]) -> bool:
        """Write records; False if the map is too small for them."""
        try:
            with self._opened().begin(write=True) as transaction:
                for key, value in records.items():
                    transaction.put(key, value)
        except lmdb.MapFullError:
            return False
        except lmdb.Error as error:
            raise CaffeError(f"cannot be written: {_reason(error)}", file=str(self._path)) from None
        return True


def _reason(error: lmdb.Error | OSError) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = first_line(error)
    # LMDB has no other word for a write that was cut short.
    return f"{said}, or the disk is full" if said.endswith(os.strerror(errno.EIO)) else said
