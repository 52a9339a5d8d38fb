"""Gradients averaged over ranks while backward still runs.

The gradients of neighbouring layers lie in one buffer, which goes on its way as soon as backward
has filled it. How numbers travel is the caller's business. torch's DistributedDataParallel does
the same for a module that is called once per iteration; here a net runs iter_size times, layer by
layer, with gradients missing at times, and all of it must fit into one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

#: What a buffer holds at most, in bytes, unless one gradient alone is larger.
BUCKET_BYTES = 25 << 20
#: Gradients begin at multiples of so many elements, so that kernels can load several at once.
_ALIGNMENT = 32

#: Starts to add up a tensor over all ranks, in place; returns a function that waits for the sum.
StartSum = Callable[[Tensor], Callable[[], None]]


class _Bucket:
    """The gradients of some parameters in one buffer, each in its parameter's memory format."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        starts, size = [], 0
        for parameter in parameters:
            starts.append(size)
            size += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        first = parameters[0]
        self.buffer = torch.zeros(size, dtype=first.dtype, device=first.device)
        self.gradients = [
            self.buffer.as_strided(parameter.shape, parameter.stride(), start)
            for parameter, start in zip(parameters, starts, strict=True)
        ]
        #: How many gradients backward has yet to bring.
        self.missing = len(parameters)

    def fill(self, scale: float) -> None:
        """Take in the gradients times `scale`, zeros for those that there are none of."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            if parameter.grad is None:
                gradient.zero_()
            else:
                torch.mul(parameter.grad, scale, out=gradient)

    def give_back(self) -> None:
        """Let the parameters have what the buffer holds now."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient


class GradientAverage:
    """Replaces the gradients of `parameters` by their mean over `ranks` ranks.

    `arm` is called before the last backward pass of an iteration, `finish` after it; all ranks do
    both. Gradients may be missing on some ranks, where they count as zero.
    """

    def __init__(self, parameters: Sequence[Tensor], ranks: int, start_sum: StartSum) -> None:
        self._scale = 1 / ranks
        self._start_sum = start_sum
        self._buckets = [_Bucket(group) for group in _group(parameters)]
        self._waits: list[Callable[[], None]] = []
        self._armed = False
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket))

    def arm(self) -> None:
        """Let gradients go on their way during the next backward pass."""
        self.reset()
        self._armed = True

    def finish(self) -> None:
        """Wait until all gradients are averaged."""
        self._armed = False
        for bucket in self._buckets[len(self._waits) :]:
            self._start(bucket)
        for wait in self._waits:
            wait()
        for bucket in self._buckets:
            bucket.give_back()
        self._waits.clear()

    def reset(self) -> None:
        """Forget a backward pass that did not come to its end."""
        self._armed = False
        self._waits.clear()
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def _arrived(self, bucket: _Bucket, parameter: Tensor) -> None:
        """A gradient is complete, for this backward pass."""
        if not self._armed:
            return
        bucket.missing -= 1
        # In a fixed order, whatever order gradients come in: it must be the same on all ranks.
        for ready in self._buckets[len(self._waits) :]:
            if ready.missing:
                break
            self._start(ready)

    def _start(self, bucket: _Bucket) -> None:
        bucket.fill(self._scale)
        self._waits.append(self._start_sum(bucket.buffer))


def _group(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """The parameters from the last to the first, as backward comes to them, in groups."""
    groups: list[list[Tensor]] = []
    room = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not groups or size > room:
            groups.append([])
            room = BUCKET_BYTES
        groups[-1].append(parameter)
        room -= size
    return groups
