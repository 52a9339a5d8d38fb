"""A few threads that share the work on one batch."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

_MOST_THREADS = 16


class Workers:
    """Threads that start when they are first needed."""

    def __init__(self) -> None:
        self._threads = min(os.cpu_count() or 1, _MOST_THREADS)
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[range], None], count: int) -> None:
        """Do `work` on all of range(count), in pieces that the threads take as they can.

        Raises what the work raises.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="decode")
        step = max(1, count // (4 * self._threads))
        pieces = [range(start, min(start + step, count)) for start in range(0, count, step)]
        for _ in self._pool.map(work, pieces):
            pass  # an error in a piece comes out here

    def close(self) -> None:
        """Stop the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
