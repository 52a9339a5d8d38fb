"""Contestants in processes of their own that take turns on one device.

A process of its own keeps each one's memory apart, and also what cuDNN has found out: PyTorch keeps
the algorithms that it has once chosen for a convolution, whatever the settings are by then.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from caffe_dns import log
from caffe_dns.errors import CaffeError, first_line
from tools.benchmarks.contestants import Built, Step, Task

Make = Callable[[Task], Built]


@dataclass(frozen=True)
class Figure:
    """Milliseconds for an iteration and, on a GPU, the most bytes of its memory in use."""

    milliseconds: float
    memory: int


class ContestantProcess:
    """A process in which a contestant trains when it is its turn."""

    def __init__(self, make: Make) -> None:
        self._make = make
        self._process = ProcessPoolExecutor(1, get_context("spawn"))
        # Starts the process, while others start theirs.
        self._process.submit(_leave)

    def build(self, task: Task) -> Future[None]:
        """Begin to build what the task says, as far as others may be at work meanwhile.

        Where that fails, for lack of memory say, the result raises RuntimeError with one line.
        """
        return self._process.submit(_build, self._make, task)

    def enter(self, seconds: float) -> dict[str, Figure]:
        """Try every way to train what has been built for so many seconds.

        Raises RuntimeError with one line where that fails.
        """
        return self._process.submit(_enter, seconds).result()

    def turn(self, way: str, seconds: float) -> float:
        """Milliseconds for an iteration."""
        return self._process.submit(_turn, way, seconds).result()

    def leave(self) -> None:
        """Give the memory back."""
        self._process.submit(_leave).result()

    def close(self) -> None:
        self._process.shutdown()


def milliseconds(step: Step, seconds: float) -> float:
    """Milliseconds for an iteration, of as many as about so many seconds take."""
    once = time_each(step, 1)
    return 1000 * time_each(step, max(1, math.ceil(seconds / once)))


def time_each(step: Step, iterations: int) -> float:
    """Seconds for each of these iterations, until the device is done with them."""
    _synchronize()
    start = time.perf_counter()
    step(iterations)
    _synchronize()
    return (time.perf_counter() - start) / iterations


# In the process ---------------------------------------------------------------------------------

_built: list[Built] = []
_ways: dict[str, Step] = {}


def _build(make: Make, task: Task) -> None:
    log.set_sink(lambda line: None)
    _leave()
    with _one_line():
        _built.append(make(task))
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()  # for others, until it is this one's turn


def _enter(seconds: float) -> dict[str, Figure]:
    with _one_line():
        figures = {}
        for way, step in _built.pop()():
            _ways[way] = step
            figures[way] = Figure(_turn(way, seconds), _peak())
        return figures


@contextmanager
def _one_line() -> Iterator[None]:
    """Make a RuntimeError with one line of what fails, and give the memory back."""
    try:
        yield
        return
    except (CaffeError, RuntimeError) as error:
        reason = first_line(error)
    _leave()
    raise RuntimeError(reason)


def _turn(way: str, seconds: float) -> float:
    return milliseconds(_ways[way], seconds)


def _leave() -> None:
    _built.clear()
    _ways.clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak() -> int:
    """The most bytes in use since it was asked last."""
    if not torch.cuda.is_initialized():
        return 0
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def _synchronize() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
