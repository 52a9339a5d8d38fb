"""How long a net takes at test time, and how that divides among its layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

from caffe_dns.net import Net
from caffe_dns.profile.timing import clock_of, forward_layer, zero_inputs

#: A measurement has at least this many passes, and takes at least this many milliseconds.
LEAST_PASSES, LEAST_MILLISECONDS = 5, 100.0


@dataclass(frozen=True)
class PassTime:
    """Milliseconds of a pass, and of each layer's part in it; these add up to it."""

    total: float
    layers: dict[str, float]


@torch.no_grad()
def time_pass(net: Net) -> PassTime:
    """Measure on inputs of zeros; the fastest passes count.

    Each layer is timed separately, and the time of a whole pass is divided in these proportions.
    """
    clock, inputs = clock_of(net), zero_inputs(net)

    def passed() -> list[float]:
        start = clock.mark()
        net.compute(inputs, inner=False)
        end = clock.mark()
        clock.wait()
        return [clock.between(start, end)]

    def apart() -> list[float]:
        blobs, marks = dict(inputs), [clock.mark()]
        for step in net.steps:
            forward_layer(step, blobs)
            marks.append(clock.mark())
        clock.wait()
        return [clock.between(*pair) for pair in pairwise(marks)]

    (total,), parts = _fastest(passed), _fastest(apart)
    names = [step.layer.name for step in net.steps]
    whole = sum(parts)
    return PassTime(
        total, {name: total * part / whole for name, part in zip(names, parts, strict=True)}
    )


def _fastest(measure: Callable[[], list[float]]) -> list[float]:
    """The minimum of each number over some measurements; the first does not count."""
    measure()
    best, passes, spent = measure(), 1, 0.0
    while passes < LEAST_PASSES or spent < LEAST_MILLISECONDS:
        found = measure()
        best = list(map(min, best, found))
        passes, spent = passes + 1, spent + sum(found)
    return best
