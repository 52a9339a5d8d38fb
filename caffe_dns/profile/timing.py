"""How long the layers of a net take, separately and in one pass, on the net's device.

Separately, every layer runs on inputs of its own, so that its backward can be run, and timed,
alone. This is for measuring only: no parameter changes, and training does not use it.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_dns.net import Net
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import TRAIN, SolverParameter
from caffe_dns.solver.iteration import CapturedIteration, run_iteration
from caffe_dns.solver.update_rules import UpdateRule


class _Clock(ABC):
    """Marks moments, and gives the milliseconds between two of them."""

    @abstractmethod
    def mark(self) -> Any: ...

    @abstractmethod
    def between(self, start: Any, end: Any) -> float: ...

    @abstractmethod
    def wait(self) -> None:
        """Wait until all marked moments have passed."""


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


def clock_of(net: Net) -> _Clock:
    """The clock of the net's device."""
    return _CudaClock() if net.context.device.type == "cuda" else _HostClock()


class LayerTimer:
    """Runs passes of a net, and adds up the milliseconds they take (`time` in tools/caffe.cpp).

    `forward_ms` and `backward_ms` have one sum for each layer of `net.steps`. Input layers are fed
    zeros.
    """

    def __init__(self, net: Net) -> None:
        self.net = net
        self.reset()
        self._clock = clock_of(net)
        self._marks: list[Any] = []
        #: Bottoms and tops of each layer in the current pass.
        self._blobs: list[tuple[list[Tensor], list[Tensor]]] = []
        self._inputs = zero_inputs(net)

    def reset(self) -> None:
        """Reset the sums."""
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
            self._blobs.append(forward_layer(step, blobs))
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
                backward_layer(step, bottoms, tops, diffs)
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


class _NoUpdate(UpdateRule):
    """Leaves the parameters as they are, and takes the gradients away."""

    num_histories = 0

    def apply(self) -> None:
        self.drop_gradients()


class PassTimer:
    """Times passes of a whole net as commands run them.

    A net for TRAIN reads a batch, and goes forward and backward as training does, on a GPU from a
    CUDA graph where the net can be captured. A net for TEST goes forward only. Input layers are fed
    zeros.
    """

    #: The minimum duration: a few passes would only use prefetched data.
    LEAST_MILLISECONDS = 1000.0

    def __init__(self, net: Net) -> None:
        self.net = net
        self._clock = clock_of(net)
        self._inputs = zero_inputs(net)
        self._rule = _NoUpdate(SolverParameter(), net.learnable_params)
        on_gpu = net.context.device.type == "cuda"
        self._captured = CapturedIteration(net, self._rule) if on_gpu else None

    def run(self, passes: int) -> float:
        """Milliseconds that a pass takes: the mean of so many, or of more if they are short.

        Passes before them, which are not counted, warm up.
        """
        self._take(CapturedIteration.WARM_UP + 1 if self._captured else 1)
        count, total = 0, 0.0
        while count < passes or total < self.LEAST_MILLISECONDS:
            total += self._take(passes)
            count += passes
        return total / count

    def _take(self, passes: int) -> float:
        """The milliseconds that so many passes take together."""
        start = self._clock.mark()
        for _ in range(passes):
            self._pass()
        end = self._clock.mark()
        self._clock.wait()
        return self._clock.between(start, end)

    def _pass(self) -> None:
        batch = {**self._inputs, **self.net.read_sources()}
        if self.net.phase != TRAIN:
            with torch.no_grad():
                self.net.compute(batch)
        elif self._captured is not None:
            self._captured.run([batch])
        else:
            run_iteration(self.net, self._rule, [batch])


def zero_inputs(net: Net) -> dict[str, Tensor]:
    """Zeros for the tops of the Input layers, by blob."""
    device = net.context.device
    return {blob: torch.zeros(net.blob_shapes[blob], device=device) for blob in net.inputs}


def forward_layer(step: Step, blobs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Run a layer alone, its bottoms cut off from what made them; its tops go into `blobs`.

    Returns bottoms and tops. Input layers, whose tops are there already, have none.
    """
    if step.layer.is_input:
        return [], []
    bottoms = [
        blobs[name].detach().requires_grad_(wanted)
        for name, wanted in zip(step.bottoms, step.bottom_backward, strict=True)
    ]
    found: Tensor | Sequence[Tensor] = step.layer(*bottoms)
    tops = [found] if isinstance(found, Tensor) else list(found)
    blobs.update(zip(step.tops, tops, strict=True))
    return bottoms, tops


def backward_layer(
    step: Step, bottoms: list[Tensor], tops: list[Tensor], diffs: dict[str, Tensor]
) -> None:
    """Take the gradients of the tops from `diffs`, and put those of the bottoms there.

    Input layers, which have neither here, are passed over.
    """
    if step.layer.is_input:
        return
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
