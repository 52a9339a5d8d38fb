"""What GPUs of one host average, complete and gather by copies from memory to memory.

NCCL's kernels hold some of a GPU's multiprocessors for as long as numbers are on their way, which
slows those of backward beside them. Copies have engines of their own in a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

#: Of two ranks, one kernel adds up buffers of so many bytes, which takes less time to start: of
#: two numbers both get the same sum, in whatever order.
AT_ONCE = 2 << 20
#: Numbers in a part of a buffer are a multiple of these, so that kernels load some at once.
_PART = 32


@dataclass(frozen=True)
class Shared:
    """A rank's part of a tensor, [N], or its buffer, as all ranks see it."""

    #: Each rank's, in their order.
    every: Sequence[Tensor]
    rank: int
    #: Waits until all ranks have come to the same place.
    meet: Callable[[], None]


def complete(tensor: Tensor, shared: Shared) -> None:
    """Put into a tensor without gaps the parts that all ranks have of it. All ranks call this."""
    size, rank = len(shared.every), shared.rank
    parts = tensor.view(size, -1)
    shared.every[rank].copy_(parts[rank])
    shared.meet()
    for step in range(1, size):  # no two read from the same at a time
        other = (rank + step) % size
        parts[other].copy_(shared.every[other])
    # Nobody writes to it again before all have read.
    shared.meet()


def average(buffer: Tensor, shared: Shared) -> None:
    """Replace a buffer [N * n] that all ranks see by its mean over the ranks. All ranks call this.

    Each rank adds up its part of it, and copies the others from those that have added them up.
    """
    size, rank = len(shared.every), shared.rank
    every = [each.view(size, -1) for each in shared.every]
    parts = buffer.view(size, -1)
    others = [(rank + step) % size for step in range(1, size)]  # no two read from the same at once
    taken = torch.empty_like(parts[rank])
    shared.meet()
    for other in others:
        taken.copy_(every[other][rank])
        parts[rank].add_(taken)
    parts[rank].mul_(1 / size)
    shared.meet()
    for other in others:
        parts[other].copy_(every[other][other])
    # Nobody writes to it again before all have read.
    shared.meet()


class PeerMemory:
    """What the ranks of `group`, with GPUs of one host, let each other read of their memory.

    Raises RuntimeError where the GPUs do not reach it, or not by this PyTorch.
    """

    def __init__(self, group: dist.ProcessGroup, rank: int, device: torch.device) -> None:
        self._group = group
        self._rank = rank
        self._device = device
        # What waits for others to come should not have to wait for a place on this GPU as well.
        self._stream = torch.cuda.Stream(device, priority=-1)
        #: By how many numbers a part has, and their type. All copies take turns on the stream, so
        #: that tensors of one size need no memory of their own.
        self._shared: dict[tuple[int, torch.dtype], Shared] = {}
        #: Buffers that all ranks see, by their addresses.
        self._buffers: dict[int, Shared] = {}
        self._try()

    def new_buffer(self, size: int, dtype: torch.dtype, _: torch.device) -> Tensor:
        """Memory for so many numbers or some more, zeros, whose mean all can make.

        All ranks call this.
        """
        ranks = self._group.size()
        shared = self._share(-(-size // (ranks * _PART)) * ranks * _PART, dtype)
        buffer = shared.every[self._rank].zero_()
        self._buffers[buffer.data_ptr()] = shared
        return buffer

    def has(self, values: Tensor) -> bool:
        """Whether that is such a buffer."""
        return values.data_ptr() in self._buffers

    def start_averaging(self, buffer: Tensor) -> Callable[[], Tensor]:
        """Start to replace a buffer by its mean over the ranks; returns what waits for the end.

        All ranks call this.
        """
        size = self._group.size()
        with self._beside():
            if size == 2 and buffer.nbytes <= AT_ONCE:
                name = self._group.group_name
                total = torch.ops.symm_mem.one_shot_all_reduce(buffer, "sum", name)
                torch.mul(total, 1 / size, out=buffer)
            else:
                average(buffer, self._buffers[buffer.data_ptr()])
            return partial(self._wait_for, self._stream.record_event(), buffer)

    def start_completing(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to put into a tensor each rank's part of it; returns what waits for the end.

        All ranks call this.
        """
        with self._beside():
            return self._complete(tensor)

    def start_gathering(self, values: Tensor) -> Callable[[], Tensor]:
        """Start to gather the rows [N, ...] of all ranks; returns what waits for them, in order.

        All ranks call this, and have as many.
        """
        size = self._group.size()
        rows = values.new_empty((size * len(values), *values.shape[1:]))
        with self._beside():
            rows.chunk(size)[self._rank].copy_(values)
            return partial(self._complete(rows), values)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """The stream of copies, which goes on from where the current one is."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def _complete(self, tensor: Tensor) -> Callable[..., Tensor]:
        complete(tensor, self._find(tensor.numel() // self._group.size(), tensor.dtype))
        return partial(self._wait_for, self._stream.record_event(), tensor)

    def _wait_for(self, done: torch.cuda.Event, result: Tensor, *sent: Tensor) -> Tensor:
        """The result when it is there. Up to then, what was sent has to stay where it is."""
        torch.cuda.current_stream(self._device).wait_event(done)
        return result

    def _find(self, numbers: int, dtype: torch.dtype) -> Shared:
        """Memory for a part of so many numbers in each rank."""
        if (numbers, dtype) not in self._shared:
            self._shared[numbers, dtype] = self._share(numbers, dtype)
        return self._shared[numbers, dtype]

    def _share(self, numbers: int, dtype: torch.dtype) -> Shared:
        from torch.distributed import _symmetric_memory as symmetric

        memory = symmetric.empty(numbers, dtype=dtype, device=self._device)
        handle = symmetric.rendezvous(memory, self._group)
        ranks = range(self._group.size())
        every = [handle.get_buffer(rank, memory.shape, memory.dtype) for rank in ranks]
        every[self._rank] = memory
        return Shared(every, self._rank, handle.barrier)

    def _try(self) -> None:
        """Raise RuntimeError unless a tensor comes out right."""
        # Nothing here is sent to several at once, for which a GPU would be set up otherwise.
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        ranks = torch.arange(self._group.size(), device=self._device)
        tensor = ranks.where(ranks == self._rank, -1).repeat_interleave(64)
        if not torch.equal(self.start_completing(tensor)(), ranks.repeat_interleave(64)):
            raise RuntimeError("the parts of other ranks are wrong")
        for size in (64, 1 << 20):  # added up at once, and in parts
            buffer = self.new_buffer(size, torch.float32, self._device).fill_(self._rank)
            mean = (self._group.size() - 1) / 2
            if not torch.equal(self.start_averaging(buffer)(), torch.full_like(buffer, mean)):
                raise RuntimeError("the mean of all ranks is wrong")
        self._shared.clear()
        self._buffers.clear()
