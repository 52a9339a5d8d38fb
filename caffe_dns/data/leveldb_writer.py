"""Writes a new LevelDB without LevelDB, for Caffe and other programs to read.

All records are in sorted tables of the last level, which LevelDB has no reason to rearrange.
Nothing is compressed: records are mostly images.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from caffe_dns.data.crc32c import masked_crc32c
from caffe_dns.data.database import Writer, publish
from caffe_dns.data.datum import Buffer
from caffe_dns.errors import CaffeError
from caffe_dns.files import sync, temporary_beside, try_place
from caffe_dns.proto.wire import varint

#: As Caffe's own LevelDB files have it.
_BLOCK_SIZE = 65536
_TABLE_SIZE = 64 << 20
_LAST_LEVEL = 6
_MAGIC = 0xDB4775248B80FB57
_FOOTER_SIZE = 48
_STORED = b"\0"
_VALUE_TYPE = 1
#: Keys between two that are stored whole.
_RESTART_INTERVAL = 16
_LOG_BLOCK_SIZE = 32768
_LOG_HEADER_SIZE = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_MANIFEST = "MANIFEST-000001"
_FIRST_TABLE = 2


class LevelDBWriter(Writer):
    """A new LevelDB. Keys have to come in ascending order, transaction after transaction."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = Path(path)
        self._temporary = temporary_beside(self._path)
        self._tables: list[_Table] = []
        self._sequence = 0
        self._last_key = b""
        self._open = True
        try:
            try_place(self._path)
            self._temporary.mkdir()
        except OSError as error:
            raise CaffeError(f"cannot be made: {error.strerror}", file=path) from None

    def _write(self, records: dict[bytes, Buffer]) -> None:
        try:
            for key in sorted(records):
                self._add(key, records[key])
        except OSError as error:
            raise CaffeError(f"cannot be written: {error.strerror}", file=str(self._path)) from None

    def close(self) -> None:
        if not self._open:
            return
        try:
            self.commit()
            if self._tables:
                self._tables[-1].finish()
            self._write_new(_MANIFEST, _as_log(self._manifest()))
            self._write_new("CURRENT", f"{_MANIFEST}\n".encode())
            publish(self._temporary, self._path)
        except OSError as error:
            raise CaffeError(f"cannot be written: {error.strerror}", file=str(self._path)) from None
        finally:
            self.abort()

    def abort(self) -> None:
        self._open = False
        for table in self._tables:
            with suppress(OSError):  # which closes it all the same
                table.file.close()
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _add(self, key: bytes, value: Buffer) -> None:
        if self._sequence and key <= self._last_key:
            raise CaffeError(
                f"key {key!r} comes after {self._last_key!r}; LevelDB is written in order here",
                file=str(self._path),
            )
        if not self._tables or self._tables[-1].size > _TABLE_SIZE:
            if self._tables:
                self._tables[-1].finish()
            number = _FIRST_TABLE + len(self._tables)
            self._tables.append(_Table(self._temporary / f"{number:06d}.ldb"))
        self._sequence += 1
        self._last_key = key
        suffix = (self._sequence << 8 | _VALUE_TYPE).to_bytes(8, "little")
        self._tables[-1].add(key + suffix, value)

    def _manifest(self) -> bytes:
        """The one version edit: comparator, log, next file, last sequence number, tables."""
        after = _FIRST_TABLE + len(self._tables)
        parts = [
            varint(1) + _text(b"leveldb.BytewiseComparator"),
            *(varint(tag) + varint(n) for tag, n in ((2, 0), (3, after), (4, self._sequence))),
        ]
        for number, table in enumerate(self._tables, _FIRST_TABLE):
            numbers = b"".join(varint(n) for n in (7, _LAST_LEVEL, number, table.size))
            parts.append(numbers + _text(table.first_key) + _text(table.last_key))
        return b"".join(parts)

    def _write_new(self, name: str, content: bytes) -> None:
        with open(self._temporary / name, "wb") as file:
            file.write(content)
            _sync(file)


class _Table:
    """A sorted table that is being written: blocks, then their index."""

    def __init__(self, path: Path) -> None:
        # Closed by finish, or by whoever gives the database up.
        self.file = open(path, "wb")  # noqa: SIM115
        self.size = 0
        self.first_key = self.last_key = b""
        self._block = _Block()
        self._index = _Block(restart_interval=1)

    def add(self, key: bytes, value: Buffer) -> None:
        """Append a record; `key` is an internal one."""
        self.first_key = self.first_key or key
        self.last_key = key
        self._block.add(key, value)
        if self._block.size >= _BLOCK_SIZE:
            self._end_block()

    def finish(self) -> None:
        """Write what is left, the index and the footer, and close the file."""
        if self._block.size:
            self._end_block()
        handles = self._write(_Block()) + self._write(self._index)
        footer = handles.ljust(_FOOTER_SIZE - 8, b"\0") + _MAGIC.to_bytes(8, "little")
        self.file.write(footer)
        self.size += len(footer)
        _sync(self.file)
        self.file.close()

    def _end_block(self) -> None:
        self._index.add(self.last_key, self._write(self._block))
        self._block = _Block()

    def _write(self, block: _Block) -> bytes:
        """Write a block with its trailer; returns its handle, offset and size."""
        content = block.content()
        handle = varint(self.size) + varint(len(content) - len(_STORED))
        self.file.write(content)
        self.file.write(masked_crc32c(content))
        self.size += len(content) + 4
        return handle


class _Block:
    """Entries whose keys are stored as differences, but for those at restarts."""

    def __init__(self, restart_interval: int = _RESTART_INTERVAL) -> None:
        self.size = 0
        self._restart_interval = restart_interval
        self._parts: list[Buffer] = []
        self._restarts: list[int] = []
        self._entries = 0
        self._last_key = b""

    def add(self, key: bytes, value: Buffer) -> None:
        shared = 0
        if self._entries % self._restart_interval == 0:
            self._restarts.append(self.size)
        else:
            shared = _shared(key, self._last_key)
        rest = key[shared:]
        entry = [varint(shared), varint(len(rest)), varint(len(value)), rest, value]
        self._parts += entry
        self.size += sum(map(len, entry))
        self._entries += 1
        self._last_key = key

    def content(self) -> bytes:
        """The whole block, and how it is stored. An empty one has a restart all the same."""
        numbers = [*(self._restarts or [0]), len(self._restarts or [0])]
        restarts = (number.to_bytes(4, "little") for number in numbers)
        return b"".join([*self._parts, *restarts, _STORED])


def _as_log(record: bytes) -> bytes:
    """A log file of one record, in as many fragments as it takes."""
    result = bytearray()
    most = _LOG_BLOCK_SIZE - _LOG_HEADER_SIZE
    fragments = [record[start : start + most] for start in range(0, len(record), most)]
    kinds = [_FULL]
    if len(fragments) > 1:
        kinds = [_FIRST, *[_MIDDLE] * (len(fragments) - 2), _LAST]
    for kind, fragment in zip(kinds, fragments, strict=True):
        content = bytes([kind]) + fragment
        result += masked_crc32c(content) + len(fragment).to_bytes(2, "little") + content
    return bytes(result)


def _shared(key: bytes, other: bytes) -> int:
    """How many bytes two keys have in common at the beginning."""
    length = 0
    for byte, other_byte in zip(key, other, strict=False):
        if byte != other_byte:
            break
        length += 1
    return length


def _text(data: bytes) -> bytes:
    return varint(len(data)) + data


def _sync(file: BinaryIO) -> None:
    file.flush()
    sync(file.fileno())
