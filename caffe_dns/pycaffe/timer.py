"""`caffe.Timer`, and what programs ask about training in several processes."""

from __future__ import annotations

import time

import torch

from caffe_dns.errors import CaffeError
from caffe_dns.pycaffe.mode import mode


class Timer:
    """How long passes between `start` and `stop`, what the GPU still has to do included."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._elapsed = 0.0

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._started is None:
            self._started = _now()

    def stop(self) -> None:
        """End, if it has begun."""
        if self._started is not None:
            self._elapsed = _now() - self._started
            self._started = None

    @property
    def ms(self) -> float:
        """Milliseconds between the last start and its stop, which this is if it runs still."""
        self.stop()
        return 1000 * self._elapsed


def _now() -> float:
    if mode.gpu:
        torch.cuda.synchronize()
    return time.perf_counter()


def has_nccl() -> bool:
    """Whether `NCCL` can be made: never, as a Caffe that was built without it."""
    return False


class NCCL:
    """What averages gradients of several solvers in BVLC's Caffe.

    Programs train in one process here, so making one raises CaffeError.
    """

    def __init__(self, solver: object, uid: str | bytes) -> None:
        raise CaffeError(
            "programs train in one process; `dns train -gpu 0,1` or torchrun starts several"
        )
