"""Finds the faster of two ways to compute the same on a GPU, by timing both, once per case.

This is what cuDNN does with its own algorithms (`torch.backends.cudnn.benchmark`); it happens only
where that is switched on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

#: How often each way is run to be timed.
TIMES = 5

Way = Callable[[], object]


class Trials:
    """What has been found, by all that the time may depend on."""

    def __init__(self) -> None:
        self.found: dict[Hashable, bool] = {}

    def is_faster(self, case: Hashable, way: Way, other: Way) -> bool:
        """Whether `way` is faster than `other`; false where it fails.

        Never where cuDNN is not to try: results have to be the same in every run then. Nor while a
        graph is captured, if it has not been found before.
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
    """Compare the shortest times of both, which take turns: others may be at work on the device.

    The first time, in which kernels are found, does not count.
    """
    try:
        for each in (way, other):
            each()
        times = [(_milliseconds(way), _milliseconds(other)) for _ in range(TIMES)]
    except Exception:  # this is not for it, Triton cannot compile for it, or memory does not do
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
