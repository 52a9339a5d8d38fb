"""What glibc's allocator does with freed memory. Other allocators are left alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

#: Parameters of mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
#: glibc's defaults for the latter two: which blocks are outside the heap, and how many.
_LARGE, _MOST_OUTSIDE = 128 << 10, 1 << 16
_keeps = False


def keep_freed_memory() -> None:
    """Let the allocator keep what an iteration frees, because the next one needs as much again.

    Otherwise glibc hands large blocks back to the kernel, which has to clear them for every
    iteration: about a tenth of the time of LeNet on a CPU, an eighth of AlexNet's processor time.
    A threshold would not help: glibc keeps no blocks above 32 MB, such as those of AlexNet's fc6.
    """
    global _keeps
    _keeps = True
    _set(_M_MMAP_MAX, 0)
    _set(_M_MMAP_THRESHOLD, _LARGE)
    _set(_M_TRIM_THRESHOLD, 1 << 30)


@contextmanager
def beside_the_heap() -> Iterator[None]:
    """A context in which large blocks still come from the kernel and go back to it.

    For work that iterations do not do, such as a snapshot: its blocks would not always fit into
    the gaps that iterations leave, and the process would sometimes grow by a megabyte. Small blocks
    cause fragmentation, too, so free memory is returned to the kernel at the end.
    """
    if not _keeps:
        yield
        return
    _set(_M_MMAP_MAX, _MOST_OUTSIDE)
    try:
        yield
    finally:
        _set(_M_MMAP_MAX, 0)
        _call("malloc_trim", 0)


def _set(parameter: int, value: int) -> None:
    _call("mallopt", parameter, value)


def _call(function: str, *arguments: int) -> None:
    with suppress(OSError, AttributeError):
        getattr(_library(), function)(*arguments)


@cache
def _library() -> ctypes.CDLL:
    """Loaded once: each CDLL creates new types, some of which the process would never free."""
    return ctypes.CDLL("libc.so.6")
