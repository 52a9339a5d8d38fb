"""Threads that share the work on a batch, each doing its own part."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_S = TypeVar("_S")
_T = TypeVar("_T")

#: With more threads, decoding is limited by Python's lock: 16 are half as fast as 10.
_MOST_THREADS = 10
#: With fewer cores, threads decode as fast as processes.
_FEWEST_CORES, _MOST_PROCESSES = 4, 16
#: How many items a thread takes at a time, and their total cost.
_MOST_TOGETHER, _BYTES_TOGETHER = 8, 4 << 20
#: How many such groups are in progress or waiting, and their total cost.
_MOST_AHEAD, _BYTES_AHEAD = 32, 256 << 20
#: How many pieces of work each thread gets. More are better balanced, but cost more.
_PIECES = 2


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def reading_threads(*, for_gpu: bool) -> int:
    """How many threads read for one net: one per core, of which a net on the CPU keeps half."""
    return decoding_threads() if for_gpu else min(_MOST_THREADS, max(1, available_cores() // 2))


def decoding_threads() -> int:
    """How many threads decode as fast as possible: one per core, up to a limit."""
    return min(_MOST_THREADS, available_cores())


def decoding_processes(ranks: int, batch_size: int) -> int:
    """How many processes decode for a net on a GPU: this rank's part of the cores, or none.

    `ranks` share the host. The first record of a batch is decoded here.
    """
    possible = hasattr(os, "memfd_create") and sys.executable and not hasattr(sys, "frozen")
    cores = available_cores() // ranks
    worth_it = batch_size > 1 and cores >= _FEWEST_CORES
    return min(cores, _MOST_PROCESSES) if possible and worth_it else 0


class Workers:
    """At most so many threads, which start when they are first needed."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # Asking fixes the number for this thread, whatever other threads set later.
        self._usual = torch.get_num_threads()
        self._pool: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[range], None], indices: range, at_least: int = 1) -> None:
        """Do `work` on all indices, divided as by `start`. Raises what `work` raises."""
        for piece in self.start(work, indices, at_least):
            piece.result()

    def map(self, make: Callable[[_S], _T], items: Sequence[_S]) -> list[_T]:
        """What `make` gives for each item, in order. Raises what it raises."""
        made: dict[int, _T] = {}

        def place(some: range) -> None:
            for at in some:
                made[at] = make(items[at])

        indices = range(len(items))
        self.run(place, indices)
        return [made[at] for at in indices]

    def stream(
        self, make: Callable[[_S], _T], items: Iterable[_S], cost: Callable[[_S], int]
    ) -> Iterator[_T]:
        """What `make` gives for each item, in order. Raises what it raises.

        Some are made ahead, as many as fit into memory by the `cost` of each, the bytes that it
        takes to make and to keep it.
        """
        if self._threads == 1:
            yield from map(make, items)
            return
        ahead: deque[tuple[Future[list[_T]], int]] = deque()
        taken = 0
        for some, size in _few_at_a_time(items, cost):
            while ahead and (len(ahead) == _MOST_AHEAD or taken + size > _BYTES_AHEAD):
                yield from ahead[0][0].result()
                taken -= ahead.popleft()[1]
            ahead.append((self._started().submit(_make_all, make, some), size))
            taken += size
        while ahead:
            yield from ahead.popleft()[0].result()

    def start(
        self, work: Callable[[range], None], indices: range, at_least: int = 1
    ) -> list[Future[None]]:
        """Start `work` on all indices, in pieces that the threads take in turn.

        All pieces but the last have at least `at_least` indices. If one thread would do it all, the
        work is done on return, and there is nothing to wait for.
        """
        if self._threads == 1:
            work(indices)
            return []
        pool = self._started()
        step = max(at_least, math.ceil(len(indices) / (_PIECES * self._threads)))
        starts = range(0, len(indices), step)
        return [pool.submit(work, indices[start : start + step]) for start in starts]

    def close(self) -> None:
        """Stop the threads; drops work that none has started."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _started(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "decode", _stay_alone, (self._usual,))
        return self._pool


def _make_all(make: Callable[[_S], _T], items: list[_S]) -> list[_T]:
    return [*map(make, items)]


def _few_at_a_time(
    items: Iterable[_S], cost: Callable[[_S], int]
) -> Iterator[tuple[list[_S], int]]:
    """The items in groups, each of one item or of a few cheap ones, with their cost."""
    group: list[_S] = []
    sum_of_costs = 0
    for item in items:
        each = cost(item)
        if group and (len(group) == _MOST_TOGETHER or sum_of_costs + each > _BYTES_TOGETHER):
            yield group, sum_of_costs
            group, sum_of_costs = [], 0
        group.append(item)
        sum_of_costs += each
    if group:
        yield group, sum_of_costs


def _stay_alone(usual: int) -> None:
    """Keep PyTorch from using threads of its own for this thread's work.

    PyTorch applies that to all new threads as well, until one of them sets the `usual` number.
    """
    torch.get_num_threads()  # otherwise the first call that asks would reset it
    torch.set_num_threads(1)
    restore = threading.Thread(target=torch.set_num_threads, args=(usual,))
    restore.start()
    restore.join()
