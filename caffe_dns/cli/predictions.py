"""Whether a net that was made smaller still predicts what it did before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caffe_dns.net import Net
from caffe_dns.net.wiring import Step


class Predictions:
    """Counts how often the largest scores of a net are where those of the net before it are.

    Scores are what Accuracy layers read, of which both nets have the same; `before` has inputs for
    the data of `after`.
    """

    def __init__(self, before: Net, after: Net) -> None:
        self._before = before
        self._judges = list(zip(_judges(before), _judges(after), strict=True))
        self.same = self.count = 0

    @torch.no_grad()
    def compare(self, data: Mapping[str, Tensor], blobs: Mapping[str, Tensor]) -> None:
        """Run the net before on the data of a pass of the net after, and count."""
        if not self._judges:
            return
        before = self._before({name: data[name] for name in self._before.inputs})
        for its, step in self._judges:
            axis = step.layer.param.accuracy_param.axis
            same = before[its.bottoms[0]].argmax(axis) == blobs[step.bottoms[0]].argmax(axis)
            self.same += int(same.sum())
            self.count += same.numel()

    def lines(self) -> list[str]:
        """What there is to say."""
        if not self.count:
            return []
        return [f"Predictions: {self.same} of {self.count} are those of the given net"]


def _judges(net: Net) -> list[Step]:
    return [step for step in net.steps if step.layer.type == "Accuracy"]
