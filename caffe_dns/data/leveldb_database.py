"""LevelDB databases, read without LevelDB (`util/db_leveldb.cpp`).

Nothing in the folder is changed, so a database can be read by several programs and without write
permission. It must not be written to meanwhile.
"""

from __future__ import annotations

import heapq
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from caffe_dns.data.database import Cursor, Database
from caffe_dns.data.leveldb_log import batch_entries, log_records
from caffe_dns.data.leveldb_table import table_entries
from caffe_dns.data.snappy import read_varint
from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import read_file

#: What a manifest's records say, by their tags.
_COMPARATOR, _LOG_NUMBER, _NEXT_FILE, _LAST_SEQUENCE = 1, 2, 3, 4
_COMPACT_POINTER, _DELETED_FILE, _NEW_FILE, _PREVIOUS_LOG = 5, 6, 7, 9
_BYTEWISE = b"leveldb.BytewiseComparator"
#: Sequence number and type of an entry, after the key in an internal key.
_SUFFIX_SIZE = 8

#: Key, minus sequence number, and value (None if deleted): sorts the newest of a key first.
Entry = tuple[bytes, int, "memoryview | None"]


@dataclass
class _Manifest:
    """Which files make up the database."""

    log_number: int = 0
    previous_log: int = 0
    #: Smallest key of each table, by level and number.
    tables: dict[tuple[int, int], bytes] = field(default_factory=dict)


class LevelDB(Database):
    """A LevelDB open for reading."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._folder = Path(path)
        try:
            name = read_file(self._folder / "CURRENT").removesuffix(b"\n")
            if not re.fullmatch(rb"MANIFEST-\d{1,20}", name):
                raise CaffeError(
                    f"cannot be read as a LevelDB: CURRENT is damaged: {name[:64]!r}", file=path
                )
            self._manifest = _read_manifest(self._folder / name.decode())
            self._recent = self._read_logs()
        except OSError as error:
            raise CaffeError(
                f"cannot be read as a LevelDB: {error.strerror}", file=error.filename or path
            ) from None

    def cursor(self) -> Cursor:
        return _LevelDBCursor(self)

    def entries(self) -> int | None:
        return None  # written nowhere

    def close(self) -> None:
        self._recent = []

    def newest(self) -> Iterator[tuple[bytes, memoryview]]:
        """Keys in order with their newest values, deleted ones left out."""
        last: bytes | None = None
        for key, _, value in self._merged():
            if key != last:
                last = key
                if value is not None:
                    yield key, value

    def _merged(self) -> Iterator[Entry]:
        runs: list[Iterator[Entry]] = [iter(self._recent)] if self._recent else []
        levels: dict[int, list[tuple[bytes, int]]] = {}
        for (level, number), smallest in self._manifest.tables.items():
            if level == 0:  # here alone tables may overlap
                runs.append(self._table(number))
            else:
                levels.setdefault(level, []).append((smallest, number))
        runs += [self._tables([number for _, number in sorted(level)]) for level in levels.values()]
        # No comparison gets to the values: a sequence number is used once.
        return runs[0] if len(runs) == 1 else heapq.merge(*runs)

    def _tables(self, numbers: list[int]) -> Iterator[Entry]:
        for number in numbers:
            yield from self._table(number)

    def _table(self, number: int) -> Iterator[Entry]:
        path = self._folder / f"{number:06d}.ldb"
        if not os.path.exists(path):
            path = path.with_suffix(".sst")  # the name before LevelDB 1.14
        last = (b"", 0)
        for key, value in table_entries(path):
            suffix = int.from_bytes(key[-_SUFFIX_SIZE:], "little")
            here = key[:-_SUFFIX_SIZE], -(suffix >> 8)
            # So that an index cannot name a block again and again.
            if not last < here:
                raise CaffeError("damaged: its keys are not in order", file=str(path))
            last = here
            yield *here, value if suffix & 0xFF else None

    def _read_logs(self) -> list[Entry]:
        """What stands in the logs only, because no table has been made of it yet."""
        newest: dict[bytes, Entry] = {}
        oldest = self._manifest.log_number
        for path in sorted(self._folder.glob("*.log"), key=_number):
            if _number(path) < oldest and _number(path) != self._manifest.previous_log:
                continue
            try:
                for batch in log_records(path):
                    for sequence, key, value in batch_entries(batch):
                        newest[key] = (key, -sequence, value)
            except CaffeError as error:
                raise error.locate(file=str(path)) from None
        return [newest[key] for key in sorted(newest)]


class _LevelDBCursor(Cursor):
    def __init__(self, database: LevelDB) -> None:
        self._database = database
        self._rest = database.newest()
        self._here: tuple[bytes, memoryview] | None = None

    def first(self) -> bool:
        self._rest = self._database.newest()
        return self.next()

    def next(self) -> bool:
        self._here = next(self._rest, None)
        return self._here is not None

    def key(self) -> bytes:
        return self._record()[0]

    def value(self) -> bytes | memoryview:
        return self._record()[1]

    def _record(self) -> tuple[bytes, memoryview]:
        if self._here is None:
            raise ValueError("the cursor is on no record")
        return self._here


def _number(path: Path) -> int:
    return int(path.stem) if path.stem.isdecimal() else -1


def _read_manifest(path: Path) -> _Manifest:
    manifest = _Manifest()
    try:
        for edit in log_records(path):
            _apply(edit, manifest)
    except IndexError:
        raise CaffeError("damaged: an edit is cut short", file=str(path)) from None
    except CaffeError as error:
        raise error.locate(file=str(path)) from None
    return manifest


def _apply(edit: bytes, manifest: _Manifest) -> None:
    """Carry out one version edit."""
    reader = _EditReader(edit)
    while not reader.at_end():
        tag = reader.number()
        if tag == _COMPARATOR:
            comparator = reader.text()
            if comparator != _BYTEWISE:
                raise CaffeError(f"keys are ordered by {comparator!r}, which is unknown")
        elif tag == _LOG_NUMBER:
            manifest.log_number = reader.number()
        elif tag == _PREVIOUS_LOG:
            manifest.previous_log = reader.number()
        elif tag in (_NEXT_FILE, _LAST_SEQUENCE):
            reader.number()
        elif tag == _COMPACT_POINTER:
            reader.number()
            reader.text()
        elif tag == _DELETED_FILE:
            manifest.tables.pop((reader.number(), reader.number()), None)
        elif tag == _NEW_FILE:
            table = reader.number(), reader.number()
            reader.number()  # size
            manifest.tables[table] = reader.text()
            reader.text()  # largest key
        else:
            raise CaffeError(f"damaged: unknown edit {tag}")


class _EditReader:
    """Numbers and texts, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def at_end(self) -> bool:
        return self._position >= len(self._data)

    def number(self) -> int:
        number, self._position = read_varint(self._data, self._position)
        return number

    def text(self) -> bytes:
        length = self.number()
        start = self._position
        self._position += length
        if self._position > len(self._data):
            raise IndexError
        return self._data[start : self._position]
