"""LevelDB's log format, which write-ahead logs and manifests share, and the batches in the logs.

A log is a sequence of 32 KiB blocks; a record is one fragment or several. What a program was
writing when it died is ignored, as in LevelDB.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from caffe_dns.data.snappy import read_varint
from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import read_file

_BLOCK_SIZE = 32768
#: Checksum (4 bytes), length (2) and type (1) of a fragment.
_HEADER_SIZE = 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
#: Sequence number (8 bytes) and number of entries (4) at the head of a batch.
_BATCH_HEADER_SIZE = 12
_DELETION, _VALUE = 0, 1


def log_records(path: Path) -> Iterator[bytes]:
    """The records in a log or manifest file, whole ones only."""
    parts: list[memoryview] = []
    for kind, fragment in _fragments(memoryview(read_file(path))):
        if kind in (_FULL, _FIRST):
            parts = []
        elif not parts:
            continue  # the record's beginning was lost
        parts.append(fragment)
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []


def _fragments(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and content of each fragment, up to the first one that is cut short."""
    for block_start in range(0, len(data), _BLOCK_SIZE):
        block = data[block_start : block_start + _BLOCK_SIZE]
        position = 0
        while position + _HEADER_SIZE <= len(block):
            length = block[position + 4] | block[position + 5] << 8
            kind = block[position + 6]
            position += _HEADER_SIZE
            if not _FULL <= kind <= _LAST:
                break  # room that was reserved and never written
            if position + length > len(block):
                return
            yield kind, block[position : position + length]
            position += length


def batch_entries(batch: bytes) -> Iterator[tuple[int, bytes, memoryview | None]]:
    """Sequence number, key and value of each entry of a write batch; value None is a deletion.

    Raises CaffeError if the batch is damaged.
    """
    view = memoryview(batch)
    sequence = int.from_bytes(batch[:8], "little")
    position = _BATCH_HEADER_SIZE
    try:
        while position < len(batch):
            kind = batch[position]
            if kind not in (_DELETION, _VALUE):
                raise CaffeError(f"damaged: a batch has an entry of type {kind}")
            key, position = _slice(view, position + 1)
            value = None
            if kind == _VALUE:
                value, position = _slice(view, position)
            yield sequence, bytes(key), value
            sequence += 1
    except IndexError:
        raise CaffeError("damaged: a batch is cut short") from None


def _slice(data: memoryview, position: int) -> tuple[memoryview, int]:
    """The bytes at `position`, after their length; and the position after them."""
    length, position = read_varint(data, position)
    if position + length > len(data):
        raise IndexError
    return data[position : position + length], position + length
