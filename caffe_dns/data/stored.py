"""Values of a database that are still in its file, and are read when they are needed.

Reading costs a copy, which threads make themselves, several values at once. Only the pixels of
large raw images are taken from the file mapped into memory, because the copy would cost four times
what else is done with them. A file that has become shorter is noticed before it is accessed:
touching what is no longer there would end the process without a word.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias, cast, overload

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from caffe_dns.data.datum import SMALL, Buffer, IntArray
from caffe_dns.errors import CaffeError

ByteArray: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"

#: Bytes that are read at a time, which stay in the processor's cache until they are used.
_SPAN = 1 << 20
#: Gaps between values up to this size are read rather than skipped.
_GAP = 1 << 16
#: The size of a thread's read buffer.
_MOST_SCRATCH = 4 << 20


class StoredFile:
    """A file open for reading at any offset. Thread-safe."""

    def __init__(self, path: str) -> None:
        """Raises CaffeError if it cannot be opened or is not a file."""
        self.path = path
        self._descriptor = -1
        try:
            # Non-blocking: opening a named pipe would wait for a writer.
            self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            status = os.fstat(self._descriptor)
        except OSError as error:
            raise self._unreadable(error) from None
        self.size = status.st_size
        #: The file's identity, independent of its name, and the path it was opened by.
        self._identity = status.st_dev, status.st_ino
        self._place = os.path.abspath(path)
        self._mapped: memoryview | None = None
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise CaffeError("cannot be read: it is not a file", file=path)

    def __reduce__(self) -> tuple[Callable[..., StoredFile], tuple[Any, ...]]:
        return _reopen, (self._place, self._identity)

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes at `start`. Raises CaffeError if the file has fewer."""
        try:
            data = os.pread(self._opened(), size, start)
        except OSError as error:
            raise self._unreadable(error) from None
        if len(data) < size:
            raise self._cut_short()
        return data

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` from offset `start`. Other threads run meanwhile."""
        done = 0
        while done < len(target):
            try:
                count = os.preadv(self._opened(), [target[done:]], start + done)
            except OSError as error:
                raise self._unreadable(error) from None
            if not count:
                raise self._cut_short()
            done += count

    def view(self, start: int, size: int) -> memoryview:
        """So many bytes from `start` on, where they lie; they are not to be written to.

        Raises CaffeError where the file has fewer by now.
        """
        descriptor = self._opened()
        if os.fstat(descriptor).st_size < max(self.size, start + size):
            raise self._cut_short()
        if self._mapped is None:
            try:
                self._mapped = _map(descriptor, self.size)
            except (OSError, ValueError):
                raise self._cut_short() from None
        return self._mapped[start : start + size]

    def close(self) -> None:
        """Closing twice does nothing."""
        self._mapped = None
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _opened(self) -> int:
        if self._descriptor < 0:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def _cut_short(self) -> CaffeError:
        return CaffeError("has become shorter while it was read", file=self.path)

    def _unreadable(self, error: OSError) -> CaffeError:
        return CaffeError(f"cannot be read: {error.strerror}", file=self.path)


@lru_cache(maxsize=4)
def _reopen(path: str, identity: tuple[int, int]) -> StoredFile:
    """Open the same file in another process, once. Raises CaffeError if it was replaced."""
    file = StoredFile(path)
    if file._identity != identity:
        file.close()
        raise CaffeError("is another file by now", file=path)
    return file


class _Memory:
    """A mapped file as a buffer for numpy arrays; keeps the map alive."""

    def __init__(self, mapped: mmap.mmap) -> None:
        address = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
        self.__array_interface__ = {
            # Marked as writable, because PyTorch would warn otherwise; nothing is written.
            "data": (address, False),
            "shape": (len(mapped),),
            "typestr": "|u1",
            "version": 3,
        }
        self._mapped = mapped


def _map(descriptor: int, size: int) -> memoryview:
    memory = np.asarray(_Memory(mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)))
    return memoryview(memory)  # type: ignore[arg-type]


class _Scratch(threading.local):
    """A buffer per thread, which is reused because new memory costs more."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def take(self, size: int) -> memoryview:
        if size > _MOST_SCRATCH:
            return new_memory(size)
        if size > len(self._memory):
            self._memory = new_memory(size)
        return self._memory[:size]


_scratch = _Scratch()


def rows_at(memory: memoryview, starts: IntArray, size: int) -> ByteArray:
    """`size` bytes from each of these offsets, [N, size]."""
    if not size:
        return np.empty((len(starts), 0), np.uint8)
    rows: ByteArray = sliding_window_view(np.frombuffer(memory, np.uint8), size)[starts]
    return rows


def new_memory(size: int) -> memoryview:
    """Uninitialised bytes, unlike a bytearray."""
    return memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]


@dataclass(slots=True)
class StoredValue:
    """A value of `size` bytes at offset `start` of a file, not yet read."""

    #: How many bytes before the value `check` needs.
    header_size: ClassVar[int] = 0
    file: StoredFile
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __bytes__(self) -> bytes:
        return bytes(self.read())

    def read(self) -> Buffer:
        """Read the value. Raises CaffeError if it is gone."""
        return next(load([self], keep=True))

    def check(self, headers: ByteArray, starts: IntArray, sizes: IntArray) -> None:
        """Raise CaffeError unless `headers` [N, header_size] may precede values like this one.

        Those are of so many bytes from these places on in the same file.
        """


class StoredValues(Sequence[StoredValue]):
    """Many values like one: all but where each begins in its file, and how long it is, [N].

    What is left out of them costs next to nothing.
    """

    def __init__(self, kind: StoredValue, starts: IntArray, sizes: IntArray) -> None:
        self.kind = kind
        self.starts = starts
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> StoredValue: ...
    @overload
    def __getitem__(self, index: slice) -> StoredValues: ...
    def __getitem__(self, index: int | slice) -> StoredValue | StoredValues:
        starts, sizes = self.starts[index], self.sizes[index]
        if isinstance(index, slice):
            return StoredValues(self.kind, starts, sizes)
        return replace(self.kind, start=int(starts), size=int(sizes))

    def __iter__(self) -> Iterator[StoredValue]:
        for start, size in zip(self.starts.tolist(), self.sizes.tolist(), strict=True):
            yield replace(self.kind, start=start, size=size)


Value: TypeAlias = "Buffer | StoredValue"


class Rows(Sequence["Buffer"]):
    """Values of one size in memory, which are the rows of a table [N, size] of uint8."""

    def __init__(self, table: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> Rows: ...
    def __getitem__(self, index: int | slice) -> bytes | Rows:
        found = self.table[index]
        return Rows(found) if isinstance(index, slice) else found.tobytes()


def join(pieces: Sequence[Sequence[Value]]) -> Sequence[Value]:
    """The values of all pieces; rows of one size stay rows, and stored ones of a kind together."""
    if len(pieces) == 1:
        return pieces[0]
    stored = [piece for piece in pieces if isinstance(piece, StoredValues)]
    if len(stored) == len(pieces) and len({id(piece.kind.file) for piece in stored}) == 1:
        starts = np.concatenate([piece.starts for piece in stored])
        sizes = np.concatenate([piece.sizes for piece in stored])
        return StoredValues(stored[0].kind, starts, sizes)
    tables = [piece.table for piece in pieces if isinstance(piece, Rows)]
    if len(tables) < len(pieces) or len({table.shape[1] for table in tables}) > 1:
        return [value for piece in pieces for value in piece]
    return Rows(np.concatenate(tables))


def in_memory(value: Value) -> Buffer:
    """The value, read if necessary. Raises CaffeError if it is gone."""
    return value.read() if isinstance(value, StoredValue) else value


def sendable(values: Sequence[Value]) -> Sequence[bytes | StoredValue]:
    """The values in a form for another process, which reads those not yet read."""
    if isinstance(values, StoredValues):
        return values
    return [value if isinstance(value, StoredValue) else bytes(value) for value in values]


@dataclass(slots=True)
class Span:
    """Some values in memory, laid out as in the file."""

    memory: memoryview
    #: The start and the end of each value there, [N].
    starts: IntArray
    ends: IntArray


def load(values: Sequence[Value], *, keep: bool = False) -> Iterator[Buffer]:
    """The values in memory, one after the other. Thread-safe. Raises CaffeError.

    Each is valid until the same thread asks for the next one, unless `keep`.
    """
    values = [*values]
    if not any(isinstance(value, StoredValue) for value in values):
        return iter(cast("Sequence[Buffer]", values))
    return _load(values, new_memory if keep else _scratch.take)


def together(values: Sequence[Value], *, any_size: bool = False) -> Span | None:
    """The values in one memory: where their file is mapped, or small ones copied.

    None for large ones that are not all stored in one file, unless those of `any_size` are to be
    copied. Good until that is closed. Raises CaffeError.
    """
    stored = values if isinstance(values, StoredValues) else _of_one_file(values)
    if stored is not None:
        memory = stored.kind.file.view(0, int((stored.starts + stored.sizes).max()))
        return _span(stored, memory, 0)
    if max(map(len, values)) > SMALL and not any_size:
        return None
    pieces = [*load(values, keep=True)]
    ends = np.cumsum([len(piece) for piece in pieces])
    starts = np.concatenate([[0], ends[:-1]])
    return Span(memoryview(bytearray().join(pieces)), starts, ends)


def _of_one_file(values: Sequence[Value]) -> StoredValues | None:
    """The values together, if all are stored in one file."""
    first = values[0]
    if not isinstance(first, StoredValue):
        return None
    stored = [v for v in values if isinstance(v, StoredValue) and v.file is first.file]
    return _as_arrays(stored) if len(stored) == len(values) else None


def _as_arrays(values: Sequence[StoredValue]) -> StoredValues:
    """Values of one kind together."""
    starts, sizes = [value.start for value in values], [value.size for value in values]
    return StoredValues(values[0], np.array(starts), np.array(sizes))


def _load(values: Sequence[Value], memory_of: Callable[[int], memoryview]) -> Iterator[Buffer]:
    for group in _groups(values):
        if isinstance(group[0], StoredValue):
            span = _read_span(group, memory_of)
            for start, end in zip(span.starts.tolist(), span.ends.tolist(), strict=True):
                yield span.memory[start:end]
        else:
            yield group[0]


def _groups(values: Sequence[Value]) -> Iterator[Any]:
    """The values in groups: several that are read together, or one that is in memory already."""
    if not values:
        return
    first = 0
    for index in range(1, len(values)):
        if not _go_together(values[first], values[index - 1], values[index]):
            yield values[first:index]
            first = index
    yield values[first:]


def _go_together(first: Value, last: Value, value: Value) -> bool:
    if not (isinstance(first, StoredValue) and isinstance(last, StoredValue)):
        return False
    if not isinstance(value, StoredValue) or value.file is not first.file:
        return False
    gap = value.start - value.header_size - (last.start + last.size)
    return 0 <= gap <= _GAP and value.start + value.size - first.start <= _SPAN


def _read_span(values: Sequence[StoredValue], memory_of: Callable[[int], memoryview]) -> Span:
    """Read values that are close together into the given memory."""
    first, last = values[0], values[-1]
    origin = first.start - first.header_size
    memory = memory_of(last.start + last.size - origin)
    first.file.read_into(memory, origin)
    return _span(_as_arrays(values), memory, origin)


def _span(values: StoredValues, memory: memoryview, origin: int) -> Span:
    """The values in memory that has what lies in their file from `origin` on."""
    kind, places = values.kind, values.starts - origin
    headers = rows_at(memory, places - kind.header_size, kind.header_size)
    kind.check(headers, values.starts, values.sizes)
    return Span(memory, places, places + values.sizes)
