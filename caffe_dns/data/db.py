"""Opens and creates databases by the name of their kind, "lmdb" or "leveldb" (`util/db.cpp`).

The kinds have modules of their own; `database` says what they have in common.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from caffe_dns import log
from caffe_dns.data.database import Database, Writer
from caffe_dns.data.leveldb_database import LevelDB
from caffe_dns.data.leveldb_writer import LevelDBWriter
from caffe_dns.data.lmdb_database import LMDB
from caffe_dns.data.lmdb_writer import LMDBWriter
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError, nearest

_Entry = TypeVar("_Entry")

_READERS: dict[str, Callable[[str], Database]] = {"leveldb": LevelDB, "lmdb": LMDB}
_WRITERS: dict[str, Callable[[str], Writer]] = {"leveldb": LevelDBWriter, "lmdb": LMDBWriter}


def open_database(path: str, backend: str = "lmdb", *, announce: bool = True) -> Database:
    """Open the database in the folder `path` for reading; `backend` is "lmdb" or "leveldb".

    Writes Caffe's log line unless it is not to `announce` it. Raises CaffeError when the folder is
    missing or is something else.
    """
    opener = _of(_READERS, backend)
    path = on_disk(path)
    _check_folder(path, backend)
    database = opener(path)
    if announce:
        log.info(f"Opened {backend} {path}")
    return database


def create_database(path: str, backend: str = "lmdb") -> Writer:
    """Start a new database that will be the folder `path`; `backend` is "lmdb" or "leveldb".

    Writes Caffe's log line. Raises CaffeError when `path` exists already or cannot be made.
    """
    creator = _of(_WRITERS, backend)
    if os.path.exists(path):
        raise CaffeError("exists already; remove it or choose another name", file=path)
    if not os.path.isdir(Path(path).absolute().parent):
        raise CaffeError(
            f"cannot be made: there is no folder {Path(path).absolute().parent}", file=path
        )
    writer = creator(path)
    log.info(f"Opened {backend} {path}")
    return writer


def _of(table: dict[str, _Entry], backend: str) -> _Entry:
    if backend not in table:
        known = ", ".join(sorted(table))
        raise CaffeError(
            f"unknown database backend '{backend}'{nearest(backend, list(table))}; known: {known}"
        )
    return table[backend]


def _check_folder(path: str, backend: str) -> None:
    folder = Path(path)
    if not os.path.exists(folder):
        raise CaffeError("there is no such database", file=path)
    if not os.path.isdir(folder):
        raise CaffeError("is not a database: it is a file, not a folder", file=path)
    kind = "lmdb" if os.path.exists(folder / "data.mdb") else None
    if kind is None and os.path.exists(folder / "CURRENT"):
        kind = "leveldb"
    if kind is None:
        raise CaffeError(
            "is not a database: the folder holds neither an LMDB nor a LevelDB", file=path
        )
    if kind != backend:
        raise CaffeError(
            f"is of the backend '{kind}', not '{backend}' (backend: {kind.upper()}, or "
            f"-backend {kind})",
            file=path,
        )
