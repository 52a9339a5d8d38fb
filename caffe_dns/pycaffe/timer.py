"""`caffe.Timer`."""

from __future__ import annotations

import time

import torch

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
