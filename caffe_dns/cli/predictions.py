"""Whether a net that was made smaller still predicts what it did before."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from caffe_dns.net import Net


class Predictions:
    """Counts how often the largest scores of a net are where those of the net before it are.

    Scores are what Accuracy layers of the net `after` read; `before` has inputs for its data.
    """

    def __init__(self, before: Net, after: Net) -> None:
        self._before = before
        self._axes = {
            step.bottoms[0]: step.layer.param.accuracy_param.axis
            for step in after.steps
            if step.layer.type == "Accuracy"
        }
        self.same = self.count = 0

    @torch.no_grad()
    def compare(self, blobs: Mapping[str, Tensor]) -> None:
        """Run the net before on the data of a pass of the net after, and count."""
        if not self._axes:
            return
        before = self._before({name: blobs[name] for name in self._before.inputs})
        for name, axis in self._axes.items():
            same = before[name].argmax(axis) == blobs[name].argmax(axis)
            self.same += int(same.sum())
            self.count += same.numel()

    def lines(self) -> list[str]:
        """What there is to say."""
        if not self.count:
            return []
        return [f"Predictions: {self.same} of {self.count} are those of the given net"]
