"""The stream that h5py writes an HDF5 file to, so that a full disk does not end the process.

The HDF5 library cannot handle a failing write: it keeps the file open, writes again when the
process ends, and crashes. So no write fails here. The first error is kept for the caller; from then
on, everything is written to memory until the library closes the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from caffe_dns.errors import CaffeError
from caffe_dns.files.writing import NewFile

if TYPE_CHECKING:
    import h5py


def write_hdf5(path: str | Path, fill: Callable[[h5py.File], Iterator[None]]) -> None:
    """Make an HDF5 file, whole or not at all: `fill` puts things in, and yields after each.

    Raises CaffeError where it cannot be written.
    """
    import h5py  # here, because importing it takes long and most runs do not need it

    stream = HDF5Stream(path)
    try:
        with h5py.File(stream, "w") as root:
            for _ in fill(root):
                stream.check()
        stream.close()
    finally:
        stream.abort()


class HDF5Stream:
    """A new file as an object that h5py.File takes. It has its name when it is closed.

    Whoever writes calls `check` now and then, `close` after h5py has closed its file, and `abort`
    in any case.
    """

    def __init__(self, path: str | Path) -> None:
        """Raises CaffeError where the file cannot be made."""
        self._file = NewFile(path)
        self._position = 0
        self._size = 0
        self._error: CaffeError | None = None
        self._unwritten: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise CaffeError where something could not be written."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Give the file its name. Raises CaffeError where not all of it could be written."""
        self.check()
        self._file.close()

    def abort(self) -> None:
        """Throw the file away, unless it has its name."""
        self._file.abort()

    # What h5py calls:

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = origin[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def write(self, data: memoryview) -> int:
        start, size = self._position, len(data)
        try:
            if self._error is None:
                self._file.write(data, start)
        except CaffeError as error:
            self._error = error
        if self._error is not None:
            self._unwritten.append((start, bytes(data)))
        self._position += size
        self._size = max(self._size, self._position)
        return size

    def read(self, size: int) -> bytes:
        start = self._position
        found = bytearray(self._written(size, start).ljust(size, b"\0"))
        for other, data in self._unwritten:
            first, end = max(start, other), min(start + size, other + len(data))
            if first < end:
                found[first - start : end - start] = data[first - other : end - other]
        self._position += size
        return bytes(found)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        try:
            if self._error is None:
                self._file.truncate(self._size)
        except CaffeError as error:
            self._error = error
        return self._size

    def flush(self) -> None:
        """Nothing waits in here."""

    def _written(self, size: int, start: int) -> bytes:
        try:
            return self._file.read(size, start)
        except CaffeError as error:
            self._error = self._error or error
            return b""
