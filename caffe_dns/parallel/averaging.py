"""Gradients averaged over ranks while backward still runs.

A large gradient goes on its way as soon as backward has computed it; small ones do together, in one
buffer. How numbers travel is the caller's business. torch's DistributedDataParallel does the same
for a module that is called once per iteration; here a net runs iter_size times, layer by layer,
with gradients missing at times, and all of it must fit into one CUDA graph.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from caffe_dns.device.memory_format import laid_out_as

#: The size limit of a buffer, in bytes: a few large transfers slow other kernels less than many
#: small ones.
BUCKET_BYTES = 25 << 20
#: The size limit of the last buffer, which all wait for when backward has ended.
LAST_BYTES = 2 << 20
#: Gradients of at least this many bytes are sent alone, without being copied.
LARGE_BYTES = BUCKET_BYTES
#: Gradients start at multiples of this many elements, so that kernels can load several at once.
_ALIGNMENT = 32

#: Starts replacing a tensor by its mean over all ranks; returns a function that waits for the end.
StartMean = Callable[[Tensor], Callable[[], object]]
#: Allocates zeros of a given number, type and device.
NewBuffer = Callable[[int, torch.dtype, torch.device], Tensor]


def new_buffer(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Ordinary memory for a buffer."""
    return torch.zeros(size, dtype=dtype, device=device)


class _Bucket:
    """The gradients of some small parameters in one buffer, each in its parameter's layout."""

    def __init__(self, parameters: Sequence[Tensor], new: NewBuffer) -> None:
        self.parameters = parameters
        starts, size = [], 0
        for parameter in parameters:
            starts.append(size)
            size += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        first = parameters[0]
        self._buffer = new(size, first.dtype, first.device)
        self._gradients = [
            self._buffer.as_strided(parameter.shape, parameter.stride(), start)
            for parameter, start in zip(parameters, starts, strict=True)
        ]
        #: How many gradients backward still has to compute.
        self.missing = len(parameters)

    def load(self) -> Tensor:
        """The buffer to send: the gradients, zeros for missing ones."""
        # One call copies those of one type, rounded or not, with the layout of their places.
        alike = defaultdict[tuple[torch.dtype, bool], list[tuple[Tensor, Tensor]]](list)
        for parameter, place in zip(self.parameters, self._gradients, strict=True):
            found = parameter.grad
            if found is None:
                place.zero_()
            else:
                alike[found.dtype, found.stride() == place.stride()].append((place, found))
        for pairs in alike.values():
            torch._foreach_copy_([place for place, _ in pairs], [found for _, found in pairs])
        return self._buffer

    def unload(self) -> None:
        """Set the parameters' gradients from the buffer."""
        for parameter, gradient in zip(self.parameters, self._gradients, strict=True):
            parameter.grad = gradient


class _Lone(_Bucket):
    """The gradient of one large parameter, which is not copied."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameters = [parameter]
        self.missing = 1

    def load(self) -> Tensor:
        (parameter,) = self.parameters
        gradient = parameter.grad
        if gradient is None:
            gradient = torch.zeros_like(parameter)
        # All ranks must have the same element order.
        parameter.grad = laid_out_as(parameter, gradient)
        return parameter.grad

    def unload(self) -> None:
        """Nothing to do: it was averaged in place."""


class GradientAverage:
    """Replaces the gradients of `parameters` by their means over the ranks.

    `arm` is called before the last backward pass of an iteration, `finish` after it; all ranks do
    both. Gradients may be missing on some ranks, where they count as zero. Those of `movable`
    parameters have memory of their own, so that they may change while backward still runs. `new`
    allocates the buffers.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        start_mean: StartMean,
        movable: Sequence[Tensor] = (),
        new: NewBuffer = new_buffer,
    ) -> None:
        self._start_mean = start_mean
        lone = {id(parameter) for parameter in movable if _is_large(parameter)}
        self._buckets = [
            _Lone(group[0]) if id(group[0]) in lone else _Bucket(group, new)
            for group in _group(parameters, lone)
        ]
        self._waits: list[Callable[[], object]] = []
        self._armed = False
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(partial(self._arrived, bucket))

    @property
    def groups(self) -> list[list[Tensor]]:
        """The groups of parameters whose gradients are sent together, in order."""
        return [list(bucket.parameters) for bucket in self._buckets]

    @property
    def goes_at_once(self) -> bool:
        """Whether nothing is sent before backward has ended."""
        return len(self._buckets) <= 1

    def arm(self) -> None:
        """Send gradients during the next backward pass."""
        self.reset()
        # One buffer has to wait for those that somebody else computes: for autograd, too, has
        # their parameters arrive, without a gradient.
        self._armed = not self.goes_at_once

    def finish(self) -> None:
        """Wait until all gradients are averaged."""
        self._armed = False
        for bucket in self._buckets[len(self._waits) :]:
            self._start(bucket)
        for wait in self._waits:
            wait()
        for bucket in self._buckets:
            bucket.unload()
        self._waits.clear()

    def reset(self) -> None:
        """Discard a backward pass that was not completed."""
        self._armed = False
        self._waits.clear()
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def _arrived(self, bucket: _Bucket, parameter: Tensor) -> None:
        """Note that a gradient is complete for this backward pass."""
        if not self._armed:
            return
        bucket.missing -= 1
        # In a fixed order, whatever order gradients are computed in: all ranks need the same.
        for ready in self._buckets[len(self._waits) :]:
            if ready.missing:
                break
            self._start(ready)

    def _start(self, bucket: _Bucket) -> None:
        with torch.no_grad():
            self._waits.append(self._start_mean(bucket.load()))


def _is_large(parameter: Tensor) -> bool:
    return parameter.numel() * parameter.element_size() >= LARGE_BYTES


def _group(parameters: Sequence[Tensor], lone: Collection[int]) -> list[list[Tensor]]:
    """The parameters in groups, in the order in which backward completes them, last first.

    Those with the ids `lone` are alone; the others wait only for each other.
    """
    groups: list[list[Tensor]] = []
    small: list[Tensor] = []
    room = BUCKET_BYTES
    for parameter in reversed(parameters):
        if id(parameter) in lone:
            groups.append([parameter])
            continue
        size = parameter.numel() * parameter.element_size()
        if small and size > room:
            groups.append(small)
            small, room = [], BUCKET_BYTES
        small.append(parameter)
        room -= size
    return [*groups, *_split(small)]


def _split(group: list[Tensor]) -> list[list[Tensor]]:
    """Split a group so that its end has at most LAST_BYTES, unless it is that small already."""
    size = 0
    for place, parameter in reversed([*enumerate(group, 1)]):
        size += parameter.numel() * parameter.element_size()
        if size > LAST_BYTES:
            return [part for part in (group[:place], group[place:]) if part]
    return [group] if group else []
