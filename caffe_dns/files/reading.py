"""Opens files for reading, whatever a name stands for.

A name in a definition may be that of a pipe that nobody writes to, or of a device that never ends.
Such problems are raised as an OSError whose `strerror` says so, as for missing files.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import time
from pathlib import Path
from typing import BinaryIO

from caffe_dns.encoding import on_disk

#: Seconds to wait for a writer of a pipe.
PATIENCE = 5.0
_PIECE = 1 << 16
#: Bytes of memory that any file may take, and how many more per byte of the file.
FREE, _PER_BYTE = 192 << 20, 16


def open_file(path: str | Path) -> BinaryIO:
    """A file open for reading, or the whole content of a pipe. Raises OSError."""
    name = on_disk(str(path))
    if "\0" in name:
        raise OSError(errno.EINVAL, "the name has a NUL byte in it")
    # Non-blocking: opening a pipe would wait for a writer.
    descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            file = os.fdopen(descriptor, "rb")
            descriptor = -1
            return file
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISFIFO(mode):
            raise OSError(errno.ENXIO, "it is a device, not a file")
        return io.BytesIO(_read_pipe(descriptor))
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def may_take(memory: int, stored: int, each: int = _PER_BYTE) -> bool:
    """Whether a number of bytes in a file, perhaps compressed, can plausibly take this much memory.

    `each` is how much a byte may become.
    """
    return memory <= FREE + each * stored


def is_count(word: str) -> bool:
    """Whether a word is a non-negative whole number of at most nine digits.

    `isdigit` accepts characters that `int` refuses, and `int` refuses very long numbers.
    """
    return word.isdecimal() and len(word) <= 9


def read_file(path: str | Path) -> bytes:
    """All of a file. Raises OSError."""
    with open_file(path) as file:
        try:
            content: bytes | None = file.read()
        except MemoryError:
            raise OSError(errno.ENOMEM, "it is larger than what memory is left") from None
    if content is None:  # such as files in /proc that wait for events
        raise OSError(errno.ENXIO, "it is a device, not a file")
    return content


def check_file(path: str | Path) -> None:
    """Raise OSError unless `path` is a file that can be read anywhere, for libraries that open."""
    with open_file(path) as file:
        if isinstance(file, io.BytesIO):
            raise OSError(errno.ESPIPE, "it is a pipe, not a file")


def _read_pipe(descriptor: int) -> bytes:
    """Everything until the other side closes the pipe."""
    pieces: list[bytes] = []
    end = time.monotonic() + PATIENCE
    while True:
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            left = end - time.monotonic()
            if left <= 0:
                raise OSError(
                    errno.ETIMEDOUT, f"it is a pipe, and for {PATIENCE:g} seconds nothing came"
                ) from None
            select.select([descriptor], [], [], left)
            continue
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)
        end = time.monotonic() + PATIENCE
