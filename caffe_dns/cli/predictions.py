"""Compares the predictions of a reduced net with those of the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from caffe_dns.net import Net
from caffe_dns.net.wiring import Step


class Predictions:
    """Counts how often two nets, before and after a reduction, predict the same class.

    Predictions are the largest of the scores that Accuracy layers read, which both nets have.
    `build_before` gives a net with inputs for the data of `after`; it is called only if there are
    such layers.
    """

    def __init__(self, build_before: Callable[[], Net], after: Net) -> None:
        judges = _judges(after)
        self._before = build_before() if judges else None
        self._judges = list(zip(_judges(self._before), judges, strict=True))
        self.same = self.count = 0

    @torch.no_grad()
    def compare(self, data: Mapping[str, Tensor], blobs: Mapping[str, Tensor]) -> None:
        """Run the earlier net on the data of a pass of the later one, and count."""
        if self._before is None:
            return
        before = self._before({name: data[name] for name in self._before.inputs})
        for its, step in self._judges:
            axis = step.layer.param.accuracy_param.axis
            same = before[its.bottoms[0]].argmax(axis) == blobs[step.bottoms[0]].argmax(axis)
            self.same += int(same.sum())
            self.count += same.numel()

    def result(self) -> dict[str, int] | None:
        """The counts for JSON, None if nothing was counted."""
        return {"same": self.same, "count": self.count} if self.count else None

    def lines(self) -> list[str]:
        """The lines for people."""
        if not self.count:
            return []
        return [f"Predictions: {self.same} of {self.count} are those of the given net"]


def _judges(net: Net | None) -> list[Step]:
    return [] if net is None else [step for step in net.steps if step.layer.type == "Accuracy"]
