"""Contestants in processes of their own that take turns on one device.

A process of its own keeps each one's memory apart, and also what cuDNN has found out: PyTorch keeps
the algorithms that it has once chosen for a convolution, whatever the settings are by then.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch

from caffe_dns import log
from caffe_dns.errors import CaffeError, first_line
from tools.benchmarks.contestants import Step, Task, Ways

Make = Callable[[Task], Ways]


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

    def enter(self, task: Task, seconds: float) -> dict[str, Figure]:
        """Build what the task says, and try every way to train for so many seconds.

        Raises RuntimeError with one line where that fails, for lack of memory say.
        """
        return self._process.submit(_enter, self._make, task, seconds).result()

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

_ways: dict[str, Step] = {}


def _enter(make: Make, task: Task, seconds: float) -> dict[str, Figure]:
    log.set_sink(lambda line: None)
    _leave()
    try:
        figures = {}
        for way, step in make(task):
            _ways[way] = step
            figures[way] = Figure(_turn(way, seconds), _peak())
        return figures
    except (CaffeError, RuntimeError) as error:
        reason = first_line(error)
    _leave()
    raise RuntimeError(reason)


def _turn(way: str, seconds: float) -> float:
    return milliseconds(_ways[way], seconds)


def _leave() -> None:
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
