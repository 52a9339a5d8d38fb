"""The pages of an LMDB file as bytes: what stands in them, checked before it is believed.

An LMDB is a B+ tree of pages of one size. The first two pages say where the newest root is; branch
pages hold the numbers of pages below, leaf pages keys and values; a large value lies in overflow
pages of its own, which follow one another. Numbers are little-endian, as every machine that Caffe
runs on writes them. Nothing is read here; whoever reads gives the bytes and the page's number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from caffe_dns.errors import CaffeError

#: Before every page: its number, four flags' worth of kind, and where its free space begins.
_HEADER = struct.Struct("<QHHHH")
HEADER_SIZE = _HEADER.size
_OVERFLOW_HEADER = struct.Struct("<QHHI")
_BRANCH, _LEAF, _OVERFLOW, _META, _LEAF2, _SUBPAGE = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
_KINDS = _BRANCH | _LEAF | _OVERFLOW | _META | _LEAF2 | _SUBPAGE
_KIND_NAMES = {_BRANCH: "a branch", _LEAF: "a leaf", _OVERFLOW: "an overflow", _META: "a meta"}
#: Magic number, version, address, size of the map.
_META_START = struct.Struct("<IIQQ")
#: Page size (of the first tree), flags, depth, pages of three kinds, entries, root.
_TREE = struct.Struct("<IHHQQQQQ")
#: Last page in use, number of the transaction.
_META_END = struct.Struct("<QQ")
META_SIZE = HEADER_SIZE + _META_START.size + 2 * _TREE.size + _META_END.size
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_MAGIC_BYTES = _MAGIC.to_bytes(4, "little")
#: Where the magic number is in files of 32-bit machines, whose page headers are shorter.
_MAGIC_OF_32_BITS = 12
_SMALLEST_PAGE, _LARGEST_PAGE = 256, 65536
_FLAGS = 0x7FFF
_NO_ROOT = 2**64 - 1
#: More levels LMDB never makes.
_DEEPEST = 32
#: Size or page (two halves), flags or the page's upper bits, and the size of the key.
_NODE = struct.Struct("<HHHH")
_NODE_BIG = 0x01
_PAGE_NUMBER = struct.Struct("<Q")


@dataclass
class Meta:
    """What one of the two first pages says: the state of the database after a transaction."""

    page_size: int
    #: Levels of the tree; 0 for none.
    depth: int
    entries: int
    root: int
    last_page: int
    transaction: int


_Overflow = TypeVar("_Overflow")


class Leaf:
    """The leaf page `number`: its records, in the order of their keys."""

    def __init__(self, data: memoryview, number: int) -> None:
        self._data = data
        self._number = number
        self._pointers = _pointers(data, number, _LEAF)
        self.size = len(self._pointers)

    def ends(self) -> tuple[bytes, bytes]:
        """The first key and the last."""
        return self._key(self._pointers[0]), self._key(self._pointers[-1])

    def records(
        self, overflow: Callable[[int, int], _Overflow]
    ) -> tuple[list[bytes], list[memoryview | _Overflow]]:
        """The keys and the values; for a large one, what `overflow` makes of its page and size."""
        data = self._data
        keys: list[bytes] = []
        values: list[memoryview | _Overflow] = []
        for at in self._pointers:
            low, high, flags, key_size = _NODE.unpack_from(data, at)
            start = at + _NODE.size + key_size
            size = low | high << 16
            keys.append(bytes(data[at + _NODE.size : start]))
            if flags == _NODE_BIG and start + _PAGE_NUMBER.size <= len(data):
                values.append(overflow(_PAGE_NUMBER.unpack_from(data, start)[0], size))
            elif flags == 0 and start + size <= len(data):
                values.append(data[start : start + size])
            elif flags & ~_NODE_BIG:
                raise _damaged(self._number, "a record in it is a database of its own")
            else:
                raise _damaged(self._number, "a record in it ends beyond the page")
        if any(one >= other for one, other in pairwise(keys)):
            raise _damaged(self._number, "its keys are not in order")
        return keys, values

    def _key(self, at: int) -> bytes:
        start = at + _NODE.size
        return bytes(self._data[start : start + _NODE.unpack_from(self._data, at)[3]])


def parse_meta(data: bytes, number: int) -> Meta:
    """The meta page `number` (0 or 1). Raises CaffeError where it is none that can be used."""
    if data[_MAGIC_OF_32_BITS : _MAGIC_OF_32_BITS + 4] == _MAGIC_BYTES:
        raise CaffeError("was written on a 32-bit machine; copy it on one of 64 bits first")
    if data[HEADER_SIZE : HEADER_SIZE + 4] == _MAGIC_BYTES[::-1]:
        raise CaffeError("was written on a machine of the other byte order")
    if len(data) < META_SIZE:
        raise CaffeError("is cut short: data.mdb ends within its first pages")
    magic, version, _, _ = _META_START.unpack_from(data, HEADER_SIZE)
    if magic != _MAGIC or _kind(data) != _META:
        raise CaffeError(f"page {number} is no LMDB meta page")
    if version != _VERSION:
        raise CaffeError(f"is of version {version} of LMDB's format; known: {_VERSION}")
    trees = HEADER_SIZE + _META_START.size
    page_size, *_ = _TREE.unpack_from(data, trees)
    _, flags, depth, _, _, _, entries, root = _TREE.unpack_from(data, trees + _TREE.size)
    last_page, transaction = _META_END.unpack_from(data, trees + 2 * _TREE.size)
    if page_size & (page_size - 1) or not _SMALLEST_PAGE <= page_size <= _LARGEST_PAGE:
        raise CaffeError(f"page {number} claims pages of {page_size} bytes")
    if flags & _FLAGS:
        raise CaffeError(
            f"has keys or values of a kind that Caffe's databases do not have (flags {flags:#x})"
        )
    if depth > _DEEPEST or (depth == 0) != (root == _NO_ROOT) or (depth == 0 and entries):
        raise CaffeError(f"page {number} claims {entries} records in a tree of {depth} levels")
    return Meta(page_size, depth, entries, root, last_page, transaction)


def branch_pages(data: memoryview, number: int) -> list[int]:
    """The pages below the branch page `number`, in the order of their keys."""
    nodes = (_NODE.unpack_from(data, at) for at in _pointers(data, number, _BRANCH))
    return [low | high << 16 | upper << 32 for low, high, upper, _ in nodes]


def check_overflow(header: memoryview, number: int, size: int, page_size: int) -> None:
    """Raise CaffeError unless `header` begins overflow pages from `number` on for `size` bytes.

    `header` has HEADER_SIZE bytes.
    """
    own_number, _, flags, pages = _OVERFLOW_HEADER.unpack_from(header)
    if flags & _KINDS != _OVERFLOW or own_number != number:
        raise _damaged(number, "it is no overflow page, though a value is said to be there")
    if pages * page_size < HEADER_SIZE + size:
        raise _damaged(number, f"a value of {size} bytes does not fit its {pages} pages")


def _pointers(data: memoryview, number: int, kind: int) -> tuple[int, ...]:
    """Where the nodes of a page of this kind begin; there is at least one."""
    own_number, _, flags, lower, upper = _HEADER.unpack_from(data)
    if flags & _KINDS != kind or own_number != number:
        raise _damaged(number, f"it is not {_KIND_NAMES[kind]} page")
    count = (lower - HEADER_SIZE) // 2
    if count < 1 or not lower <= upper <= len(data):
        raise _damaged(number, f"it claims {count} entries")
    pointers = struct.unpack_from(f"<{count}H", data, HEADER_SIZE)
    if min(pointers) < upper or max(pointers) + _NODE.size > len(data):
        raise _damaged(number, "an entry in it lies beyond the page")
    return pointers


def _kind(data: bytes) -> int:
    kind: int = _HEADER.unpack_from(data)[2] & _KINDS
    return kind


def _damaged(number: int, why: str) -> CaffeError:
    return CaffeError(f"is damaged at page {number}: {why}")
