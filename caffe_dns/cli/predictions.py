"""Compares the predictions of a reduced net with those of the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from caffe_dns.net import Net
from caffe_dns.net.wiring import Step


class Predictions:
    """Counts how often the largest scores of a net are where those of the net before it are.

    Scores are what Accuracy layers read, of which both nets have the same; what `build_before`
    gives has inputs for the data of `after`. Without such a layer nothing is built.
    """

    def __init__(self, build_before: Callable[[], Net], after: Net) -> None:
        judges = _judges(after)
        self._before = build_before() if judges else None
        self._judges = list(zip(_judges(self._before), judges, strict=True))
        self.same = self.count = 0

    @torch.no_grad()
    def compare(self, data: Mapping[str, Tensor], blobs: Mapping[str, Tensor]) -> None:
        """Run the net before on the data of a pass of the net after, and count."""
        if self._before is None:
            return
        before = self._before({name: data[name] for name in self._before.inputs})
        for its, step in self._judges:
            axis = step.layer.param.accuracy_param.axis
            same = before[its.bottoms[0]].argmax(axis) == blobs[step.bottoms[0]].argmax(axis)
            self.same += int(same.sum())
            self.count += same.numel()

    def result(self) -> dict[str, int] | None:
        """The counts for programs, None if nothing was counted."""
        return {"same": self.same, "count": self.count} if self.count else None

    def lines(self) -> list[str]:
        """What there is to say."""
        if not self.count:
            return []
        return [f"Predictions: {self.same} of {self.count} are those of the given net"]


def _judges(net: Net | None) -> list[Step]:
    return [] if net is None else [step for step in net.steps if step.layer.type == "Accuracy"]
