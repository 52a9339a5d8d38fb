"""How long each layer of a net takes, forward and backward, on the device the net is on.

Every layer runs on inputs of its own, so that its backward can be run, and timed, by itself. For
measuring only: no parameter changes, and training does not go through here.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_dns.net import Net
from caffe_dns.wiring import Step


class _Clock(ABC):
    """Marks moments, and tells how many milliseconds lie between two of them."""

    @abstractmethod
    def mark(self) -> Any: ...

    @abstractmethod
    def between(self, start: Any, end: Any) -> float: ...

    @abstractmethod
    def wait(self) -> None:
        """Return when all marked moments have passed."""


class _HostClock(_Clock):
    def mark(self) -> float:
        return time.perf_counter()

    def between(self, start: float, end: float) -> float:
        return 1000 * (end - start)

    def wait(self) -> None:
        """Marked moments have always passed here."""


class _CudaClock(_Clock):
    """Moments on the GPU, which works through its queue while the host runs ahead."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return start.elapsed_time(end)

    def wait(self) -> None:
        torch.cuda.synchronize()


class LayerTimer:
    """Runs passes of a net, and adds up the milliseconds they take (`time` in tools/caffe.cpp).

    `forward_ms` and `backward_ms` have one sum for each layer of `net.steps`. Input layers are fed
    zeros.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.reset()
        self._clock = _CudaClock() if net.context.device.type == "cuda" else _HostClock()
        self._marks: list[Any] = []
        #: Bottoms and tops of each layer in the current pass.
        self._blobs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._inputs = {
            blob: torch.zeros(net.blob_shapes[blob], device=net.context.device)
            for blob in net.inputs
        }

    def reset(self) -> None:
        """Start the sums at nothing."""
        self.forward_ms = [0.0] * len(self.net.steps)
        self.backward_ms = [0.0] * len(self.net.steps)

    def run(self) -> float:
        """A forward and a backward pass; returns the milliseconds that both took together."""
        self.forward()
        self.backward()
        return self.finish()

    def forward(self) -> Tensor:
        """The first half of a pass; returns the loss."""
        blobs = dict(self._inputs)
        self._blobs.clear()
        self._marks = [self._clock.mark()]
        for step in self.net.steps:
            self._forward_layer(step, blobs)
            self._marks.append(self._clock.mark())
        self.net.context.passes += 1
        return self.net.loss(blobs).detach()

    def backward(self) -> None:
        """The second half of a pass."""
        diffs: dict[str, Tensor] = {}
        self._marks.append(self._clock.mark())
        for step in reversed(self.net.steps):
            bottoms, tops = self._blobs.pop()
            if step.needs_backward:
                _backward_layer(step, bottoms, tops, diffs)
            del bottoms, tops  # giving memory back is part of this layer's time
            self._marks.append(self._clock.mark())

    def finish(self) -> float:
        """Add the pass to the sums; returns the milliseconds it took."""
        self._clock.wait()
        count = len(self.net.steps)
        forward, backward = self._marks[: count + 1], self._marks[count + 1 :]
        for index in range(count):
            self.forward_ms[index] += self._clock.between(*forward[index : index + 2])
            self.backward_ms[-1 - index] += self._clock.between(*backward[index : index + 2])
        return self._clock.between(forward[0], backward[-1])

    def _forward_layer(self, step: Step, blobs: dict[str, Tensor]) -> None:
        if step.layer.type == "Input":
            self._blobs.append(([], []))
            return
        bottoms = [
            blobs[name].detach().requires_grad_(wanted)
            for name, wanted in zip(step.bottoms, step.bottom_backward, strict=True)
        ]
        tops: Tensor | Sequence[Tensor] = step.layer(*bottoms)
        tops = [tops] if isinstance(tops, Tensor) else list(tops)
        blobs.update(zip(step.tops, tops, strict=True))
        self._blobs.append((bottoms, tops))


def _backward_layer(
    step: Step, bottoms: list[Tensor], tops: list[Tensor], diffs: dict[str, Tensor]
) -> None:
    """Take the gradients of the tops from `diffs`, and put those of the bottoms there."""
    outputs, gradients = [], []
    for name, top, weight in zip(step.tops, tops, step.loss_weights, strict=True):
        diff = diffs.pop(name, None)
        if weight:
            diff = torch.full_like(top, weight)
        if diff is not None and top.requires_grad:
            outputs.append(top)
            gradients.append(diff)
    wanted = [
        (name, bottom)
        for name, bottom, on in zip(step.bottoms, bottoms, step.bottom_backward, strict=True)
        if on
    ]
    parameters = [blob for blob in step.layer.parameters() if blob.requires_grad]
    inputs = [*(bottom for _, bottom in wanted), *parameters]
    if not outputs or not inputs:
        return
    found = torch.autograd.grad(outputs, inputs, gradients, allow_unused=True)
    for (name, _), gradient in zip(wanted, found, strict=False):
        if gradient is not None:
            diffs[name] = gradient
