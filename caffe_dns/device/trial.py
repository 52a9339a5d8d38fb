"""Finds the faster of two ways to compute the same on a GPU, by timing both, once per case.

This is what cuDNN does with its own algorithms (`torch.backends.cudnn.benchmark`); it happens only
where that is switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

#: How often each way is timed.
TIMES = 5

Way = Callable[[], object]


class Trials:
    """The results so far, by everything that the time may depend on."""

    def __init__(self) -> None:
        self.found: dict[Hashable, bool] = {}

    def is_faster(self, case: Hashable, way: Way, other: Way) -> bool:
        """Whether `way` is faster than `other`; false if it fails.

        Always false where cuDNN's benchmark is off, because every run has to give the same results
        then; and while a graph is captured, unless the case has been tried before.
        """
        if not torch.backends.cudnn.benchmark:
            return False
        if case not in self.found:
            if torch.cuda.is_current_stream_capturing():
                return False
            self.found[case] = _try(way, other)
        return self.found[case]


@torch.no_grad()
def _try(way: Way, other: Way) -> bool:
    """Compare the shortest times of both, by turns, because other programs may use the device.

    The first run of each, which finds or compiles kernels, does not count.
    """
    try:
        for each in (way, other):
            each()
        times = [(_milliseconds(way), _milliseconds(other)) for _ in range(TIMES)]
    except Exception:  # not supported, Triton cannot compile it, or out of memory
        return False
    own, others = (min(column) for column in zip(*times, strict=True))
    return own < others


def _milliseconds(way: Way) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    way()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)
