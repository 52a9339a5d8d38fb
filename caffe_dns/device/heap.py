"""What glibc's allocator does with freed memory. Other allocators are left alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

#: Parameters of mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
#: What the latter two are by themselves: which blocks lie outside of the heap, and how many.
_LARGE, _MOST_OUTSIDE = 128 << 10, 1 << 16
_keeps = False


def keep_freed_memory() -> None:
    """Let the allocator keep what an iteration frees, for the next one takes as much again.

    Otherwise glibc hands large blocks back to the kernel, which has to clear them for every
    iteration: about a tenth of the time of LeNet on a CPU, an eighth of AlexNet's processor time.
    A threshold would not do: of blocks above 32 MB, as AlexNet's fc6 has, glibc keeps none.
    """
    global _keeps
    _keeps = True
    _set(_M_MMAP_MAX, 0)
    _set(_M_MMAP_THRESHOLD, _LARGE)
    _set(_M_TRIM_THRESHOLD, 1 << 30)


@contextmanager
def beside_the_heap() -> Iterator[None]:
    """Within it, large blocks come from the kernel and go back to it all the same.

    For work that an iteration does not do, as a snapshot: it would have to find gaps among what
    iterations have left, now and then would not, and the process would have grown by a megabyte.
    Small blocks scatter, too, a page more now and then: what is free goes back to the kernel.
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
    """Once: each CDLL makes types of its own, and a process would keep some at each snapshot."""
    return ctypes.CDLL("libc.so.6")
