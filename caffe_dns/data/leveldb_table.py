"""Reads the sorted tables of a LevelDB (.ldb, .sst): an index of blocks of sorted entries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from caffe_dns.data.snappy import decompress, read_varint
from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import open_file

_FOOTER_SIZE = 48
_MAGIC = 0xDB4775248B80FB57
#: A byte for the kind of compression and four of checksum follow each block.
_TRAILER_SIZE = 5
_STORED, _SNAPPY = 0, 1

Block = tuple[bytes, memoryview]


def table_entries(path: Path) -> Iterator[Block]:
    """Internal keys and values of the table in `path`, in order, block after block.

    The file is open while the iteration goes on. Raises CaffeError if it is damaged.
    """
    try:
        with open_file(path) as file:
            for _, handle in _block_entries(_read_block(file, *_index_handle(file))):
                offset, position = read_varint(handle, 0)
                size, _ = read_varint(handle, position)
                yield from _block_entries(_read_block(file, offset, size))
    except IndexError:
        raise CaffeError("damaged: a block is cut short", file=str(path)) from None
    except CaffeError as error:
        raise error.locate(file=str(path)) from None
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(path)) from None


def _index_handle(file: BinaryIO) -> tuple[int, int]:
    """Offset and size of the index block."""
    file.seek(0, 2)
    if file.tell() < _FOOTER_SIZE:
        raise CaffeError("damaged: too short for a table")
    file.seek(-_FOOTER_SIZE, 2)
    footer = file.read(_FOOTER_SIZE)
    if int.from_bytes(footer[-8:], "little") != _MAGIC:
        raise CaffeError("is not a LevelDB table")
    position = 0
    for _ in range(2):  # the handle of the meta index comes first
        _, position = read_varint(footer, position)
    offset, position = read_varint(footer, position)
    size, _ = read_varint(footer, position)
    return offset, size


def _read_block(file: BinaryIO, offset: int, size: int) -> bytes:
    if offset + size + _TRAILER_SIZE > file.seek(0, 2):
        raise IndexError
    file.seek(offset)
    block = file.read(size + _TRAILER_SIZE)
    if len(block) != size + _TRAILER_SIZE:
        raise IndexError
    kind = block[size]
    if kind == _STORED:
        return block[:size]
    if kind == _SNAPPY:
        return decompress(block[:size])
    raise CaffeError(f"unknown compression {kind}")


def _block_entries(block: bytes) -> Iterator[Block]:
    """Keys and values of one block; each key is stored as its difference from the one before."""
    view = memoryview(block)
    restarts = int.from_bytes(block[-4:], "little")
    end = len(block) - 4 * (restarts + 1)
    if end < 0:
        raise IndexError
    key = b""
    position = 0
    while position < end:
        shared, position = read_varint(block, position)
        rest, position = read_varint(block, position)
        size, position = read_varint(block, position)
        value_start = position + rest
        if value_start + size > end or shared > len(key):
            raise IndexError
        key = key[:shared] + block[position:value_start]
        position = value_start + size
        yield key, view[value_start:position]
