"""The pages of an LMDB file as bytes, checked before they are trusted.

An LMDB is a B+ tree of pages of one size. The first two pages say where the newest root is; branch
pages hold the numbers of the pages below, leaf pages keys and values; a large value is on
consecutive overflow pages of its own. Numbers are little-endian, as every machine that Caffe runs
on writes them. Nothing is read here; the caller gives the bytes and the page's number.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from caffe_dns.data.stored import ByteArray, StoredValues, Value, rows_at
from caffe_dns.errors import CaffeError
from caffe_dns.files.kinds import HEAD, other_kind

#: Before every page: its number, four flags' worth of kind, and where its free space begins.
_HEADER = struct.Struct("<QHHHH")
HEADER_SIZE = _HEADER.size
_OVERFLOW_HEADER = np.dtype(
    [("number", "<u8"), ("unused", "<u2"), ("flags", "<u2"), ("pages", "<u4")]
)
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
#: Keys up to this size are compared all at once; Caffe's are shorter, but for paths.
_LONG_KEY = 64
_PAGE_NUMBER = np.dtype("<u8")


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


IntArray: TypeAlias = "np.ndarray[Any, np.dtype[np.integer[Any]]]"
BoolArray: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"


class Leaves:
    """The leaf pages `numbers`, which follow one another in the order of their keys.

    `data` has them one after the other. All are checked and decoded at once, by numpy: a record
    costs less than LMDB takes to step over it.
    """

    def __init__(self, data: memoryview, numbers: Sequence[int], page_size: int) -> None:
        self._data = data
        self._numbers = numbers
        self._page_size = page_size
        #: For each record the index of its page.
        self._pages, starts = _entries(data, numbers, _LEAF)
        words = np.frombuffer(data, "<u2")
        low, high, self._flags, key_sizes = (words[starts // 2 + n].astype(int) for n in range(4))
        self._sizes = low | high << 16
        self._key_starts = starts + _NODE.size
        self._key_ends = self._key_starts + key_sizes
        self.size = len(starts)

    def ends(self) -> tuple[bytes, bytes]:
        """The first key and the last."""
        return self.key(0), self.key(-1)

    def key(self, index: int) -> bytes:
        return bytes(self._data[self._key_starts[index] : self._key_ends[index]])

    def check(self) -> None:
        """Raise CaffeError unless keys are in order, and values where they may be.

        Only then the values may be asked for.
        """
        self._refuse(self._flags & ~_NODE_BIG != 0, "a record in it is a database of its own")
        sizes = np.where(self._flags == _NODE_BIG, _PAGE_NUMBER.itemsize, self._sizes)
        beyond = self._key_ends + sizes > (self._pages + 1) * self._page_size
        self._refuse(beyond, "a record in it ends beyond the page")
        if int((self._key_ends - self._key_starts).max()) <= _LONG_KEY:
            unordered = self._unordered_keys()
        else:
            unordered = _unordered([self.key(index) for index in range(self.size)])
        self._refuse(unordered, "its keys are not in order")

    def values(
        self, overflow: Callable[[IntArray, IntArray], StoredValues], some: slice
    ) -> Sequence[Value]:
        """Some of the values; for large ones, what `overflow` makes of their pages and sizes."""
        starts, sizes, data = self._key_ends[some], self._sizes[some], self._data
        large = self._flags[some].nonzero()[0]
        pages = rows_at(data, starts[large], _PAGE_NUMBER.itemsize).view(_PAGE_NUMBER)[:, 0]
        stored = overflow(pages, sizes[large])
        if len(large) == len(starts):
            return stored
        values: list[Value] = [
            data[start : start + size]
            for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        ]
        for index, value in zip(large.tolist(), stored, strict=True):
            values[index] = value
        return values

    @cached_property
    def table(self) -> ByteArray | None:
        """The values as rows [N, size] of uint8, or None where they are not all of one size."""
        if self._flags.any() or (self._sizes != self._sizes[0]).any():
            return None
        return rows_at(self._data, self._key_ends, int(self._sizes[0]))

    def _unordered_keys(self) -> BoolArray:
        """For each record whether its key is not greater than that before."""
        sizes = self._key_ends - self._key_starts
        # Numbers that are ordered like the bytes; behind the shorter keys come zeros.
        longest = -(-int(sizes.max()) // 8) * 8
        starts = np.minimum(self._key_starts, len(self._data) - longest)
        table = rows_at(self._data, starts, longest)
        for index in (starts != self._key_starts).nonzero()[0].tolist():
            table[index, : sizes[index]] = np.frombuffer(self.key(index), np.uint8)
        table[np.arange(longest) >= sizes[:, None]] = 0
        greater = sizes[1:] > sizes[:-1]
        for numbers in table.view(">u8").T[::-1]:
            before, after = numbers[:-1], numbers[1:]
            greater = (after > before) | (after == before) & greater
        return np.concatenate([[False], ~greater])

    def _refuse(self, wrong: BoolArray, why: str) -> None:
        """Raise CaffeError for the page of the first record that is wrong."""
        if wrong.any():
            raise _damaged(self._numbers[self._pages[wrong.argmax()]], why)


def _unordered(keys: Sequence[bytes]) -> BoolArray:
    """For each key whether it is not greater than that before."""
    return np.array([False, *(one >= other for one, other in pairwise(keys))])


def parse_meta(data: bytes, number: int) -> Meta:
    """The meta page `number` (0 or 1). Raises CaffeError where it is none that can be used."""
    if data[_MAGIC_OF_32_BITS : _MAGIC_OF_32_BITS + 4] == _MAGIC_BYTES:
        raise CaffeError("was written on a 32-bit machine; copy it on one of 64 bits first")
    if data[HEADER_SIZE : HEADER_SIZE + 4] == _MAGIC_BYTES[::-1]:
        raise CaffeError("was written on a machine of the other byte order")
    if kind := other_kind(bytes(data[:HEAD])):
        raise CaffeError(f"of data.mdb, {kind}")
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
    if entries > (last_page + 1) * page_size // _NODE.size:
        raise CaffeError(f"page {number} claims {entries} records in {last_page + 1} pages")
    return Meta(page_size, depth, entries, root, last_page, transaction)


def branch_pages(data: memoryview, number: int) -> list[int]:
    """The pages below the branch page `number`, in the order of their keys."""
    _, starts = _entries(data, [number], _BRANCH)
    words = np.frombuffer(data, "<u2")
    low, high, top = (words[starts // 2 + n].astype(int) for n in range(3))
    pages: list[int] = (low | high << 16 | top << 32).tolist()
    return pages


def check_overflow(headers: ByteArray, numbers: IntArray, sizes: IntArray, page_size: int) -> None:
    """Raise CaffeError unless `headers` [N, HEADER_SIZE] begin overflow pages for values.

    Those begin at the pages `numbers`, and have so many bytes.
    """
    fields = headers.view(_OVERFLOW_HEADER)[:, 0]
    wrong = (fields["flags"] & _KINDS != _OVERFLOW) | (fields["number"] != numbers)
    for index in wrong.nonzero()[0].tolist():
        why = "it is no overflow page, though a value is said to be there"
        raise _damaged(numbers[index], why)
    pages = fields["pages"].astype(int)
    for index in (pages * page_size < HEADER_SIZE + sizes).nonzero()[0].tolist():
        why = f"a value of {sizes[index]} bytes does not fit its {pages[index]} pages"
        raise _damaged(numbers[index], why)


def _entries(data: memoryview, numbers: Sequence[int], kind: int) -> tuple[IntArray, IntArray]:
    """The entries of the pages `numbers`, which lie one after the other in `data`.

    For each entry the index of its page, and where it begins in `data`. Raises CaffeError unless
    all pages are of this kind and have one entry or more, and all entries lie in them.
    """
    words = np.frombuffer(data, "<u2")
    pages = words.reshape(len(numbers), -1)
    size = 2 * pages.shape[1]
    own = np.frombuffer(data, "<u8").reshape(len(numbers), -1)[:, 0]
    wrong = (pages[:, 5] & _KINDS != kind) | (own != np.array(numbers, np.uint64))
    for page in wrong.nonzero()[0].tolist():
        raise _damaged(numbers[page], f"it is not {_KIND_NAMES[kind]} page")
    lowers, uppers = pages[:, 6].astype(int), pages[:, 7].astype(int)
    counts = (lowers - HEADER_SIZE) // 2
    wrong = (counts < 1) | (lowers > uppers) | (uppers > size)
    for page in wrong.nonzero()[0].tolist():
        raise _damaged(numbers[page], f"it claims {counts[page]} entries")
    most, first = int(counts.max()), HEADER_SIZE // 2
    pointers = pages[:, first : first + most][np.arange(most) < counts[:, None]].astype(int)
    places = np.repeat(np.arange(len(numbers)), counts)
    wrong = (pointers < uppers[places]) | (pointers + _NODE.size > size) | (pointers & 1 == 1)
    if wrong.any():
        raise _damaged(numbers[places[wrong.argmax()]], "an entry in it lies beyond the page")
    return places, places * size + pointers


def _kind(data: bytes) -> int:
    kind: int = _HEADER.unpack_from(data)[2] & _KINDS
    return kind


def _damaged(number: int, why: str) -> CaffeError:
    return CaffeError(f"is damaged at page {number}: {why}")
