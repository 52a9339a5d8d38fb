"""The processes that train one net together: who they are, what they agree on and what they share.

Each has a rank and sees its own part of the data; rank 0 tests, logs and writes files. They
communicate by torch.distributed (Caffe's `parallel.cpp` is the model). How the processes are
started is not known here.
"""

from __future__ import annotations

import atexit
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from threading import Thread
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net.params import Param
from caffe_dns.parallel.averaging import GradientAverage, new_buffer
from caffe_dns.parallel.heartbeat import LONGEST_SILENCE, Heartbeat
from caffe_dns.parallel.peer_memory import PeerMemory
from caffe_dns.parallel.world import World

#: How long the processes wait for each other at the start.
_START = timedelta(minutes=10)
#: After this many seconds, each logs where it waits.
_SILENCE = 30
#: How long a rank waits for another: rank 0 may test or write for hours. Dead ranks are noticed by
#: their heartbeat.
_PATIENCE = timedelta(days=7)
#: It has another name in newer versions of PyTorch.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
#: Seconds between two agreements about signals.
_BETWEEN_MEETINGS = 0.1


class Ranks:
    """All ranks of a run, seen from one of them. This class is for a single process."""

    rank = 0
    size = 1
    #: Whether all ranks get the same bits from the same computation.
    are_alike = True
    #: How many of them are on this host.
    local_size = 1

    @property
    def are_near(self) -> bool:
        """Whether all ranks are on one host."""
        return self.local_size == self.size

    @property
    def is_root(self) -> bool:
        """Whether this is the rank that tests, logs and writes files."""
        return self.rank == 0

    def agree(self, ask: Callable[[], int]) -> int:
        """The largest number that any rank returns. All ranks call this once per iteration.

        With several ranks, most calls return 0 without communication.
        """
        return ask()

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers. All ranks call this at the same point."""
        return number

    def from_root(self, number: int) -> int:
        """Rank 0's number, which must not be negative."""
        return number

    def share(self, params: Sequence[Param]) -> None:
        """Overwrite weights, masks and statistics with those of rank 0."""

    def average(self, params: Sequence[Param]) -> GradientAverage | None:
        """The average of the gradients of these parameters; None for a single rank."""
        return None

    def to_means(self, tensors: Sequence[Tensor]) -> None:
        """Replace dense tensors, in the same order on all ranks, by their means."""

    def start_gathering(self, values: Tensor) -> Callable[[], Tensor]:
        """Start to gather the rows [N, ...] of all ranks; returns what waits for them, in order.

        All ranks have as many.
        """
        return lambda: values

    def part_of(self, tensor: Tensor) -> Tensor:
        """This rank's part of a tensor without gaps that N ranks divide evenly: rows, a view."""
        return tensor

    def start_completing(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to put into a tensor each rank's part of it; returns what waits for the end."""
        return lambda: tensor

    def complete(self, tensors: Sequence[Tensor]) -> None:
        """Put into each tensor what other ranks have as their parts of it."""
        for wait in [self.start_completing(tensor) for tensor in tensors]:
            wait()


class JoinedRanks(Ranks):
    """A context in which this process is one of several. Raises CaffeError if they do not connect.

    Everything except gradients and weights is exchanged on the CPU. On an error, only one rank
    reports it; the others end silently.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.rank = world.rank
        self.size = world.size
        self.local_size = world.local_size
        self._device = torch.device("cpu")
        self._group: dist.ProcessGroup | None = None
        self._peers: PeerMemory | None = None
        self._heartbeat: Heartbeat
        # Calls of `agree` until the next meeting, between the last two, and the time of the last.
        self._until_meeting = 1
        self._pause = 1
        self._met = time.perf_counter()

    def __enter__(self) -> JoinedRanks:
        log.set_quiet(not self.is_root)
        world = self.world
        try:
            store = self._find_others()
            self._heartbeat = Heartbeat(
                world.rank,
                world.size,
                world.address,
                world.port,
                rank_0_keeps=not world.store_is_kept,
            )
            dist.init_process_group(
                "gloo", store=store, rank=world.rank, world_size=world.size, timeout=_PATIENCE
            )
        except CaffeError:
            raise
        except (RuntimeError, ValueError) as error:
            raise CaffeError(
                f"rank {world.rank} of {world.size} does not reach the others at "
                f"{world.address}:{world.port}: {first_line(error)}"
            ) from None
        return self

    def _find_others(self) -> dist.Store:
        """The store of `meet`. Waiting for it ignores signals, so that is done in a thread."""
        store: futures.Future[dist.Store] = futures.Future()

        def run() -> None:
            try:
                store.set_result(self.meet(_START))
            except Exception as error:
                store.set_exception(error)

        Thread(target=run, daemon=True).start()
        if not futures.wait([store], _SILENCE).done:
            was_quiet = log.set_quiet(False)
            log.warning(
                f"Rank {self.rank} of {self.size} waits for the others at {self.world.address}:"
                f"{self.world.port} (MASTER_ADDR and MASTER_PORT), {_START} at most"
            )
            log.set_quiet(was_quiet)
        return store.result()

    def meet(self, timeout: timedelta) -> dist.Store:
        """Wait for the others at the store that torchrun's variables name."""
        store, _, _ = next(dist.rendezvous("env://", timeout=timeout))
        return store

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._fail(error)
            return
        with self._connected():
            dist.barrier()
            self._heartbeat.stop()
            # The store stays while other ranks still read heartbeats.
            dist.barrier()
        dist.destroy_process_group()

    def use(self, device: torch.device) -> None:
        """Exchange gradients and weights between devices of this kind."""
        on_gpu = device.type == "cuda"
        host = platform.node()
        place = f"GPU {device.index}" if on_gpu else "CPU"
        kind = torch.cuda.get_device_name(device) if on_gpu else (host, torch.get_num_threads())
        found: list[Any] = [None] * self.size
        with self._connected():
            dist.all_gather_object(found, (f"{place} of {host}", kind))
        places = [place for place, _ in found]
        self.are_alike = len({kind for _, kind in found}) == 1
        self._heartbeat.places = places
        if len({place.startswith("GPU") for place in places}) > 1:
            raise CaffeError(f"some ranks have a GPU and others have none: {', '.join(places)}")
        self._device = device
        if on_gpu:
            if not dist.is_nccl_available():
                raise CaffeError("several GPUs need a PyTorch that was built with NCCL")
            self._group = dist.new_group(backend="nccl", timeout=_PATIENCE)
            self._peers = self._find_peers(self._group)

    def _find_peers(self, group: dist.ProcessGroup) -> PeerMemory | None:
        """The memory of the other GPUs, if all are on this host and reachable."""
        if not self.are_near:
            return None
        try:
            peers = PeerMemory(group, self.rank, self._device)
        except (AttributeError, ImportError, RuntimeError):  # some PyTorch lacks support
            peers = None
        return None if self.largest(int(peers is None)) else peers

    # Agreeing -----------------------------------------------------------------------------------

    def agree(self, ask: Callable[[], int]) -> int:
        self._until_meeting -= 1
        if self._until_meeting:
            return 0
        answer, self._pause = self._largest(ask(), self._next_pause() if self.is_root else 0)
        self._until_meeting = self._pause
        return answer

    def largest(self, number: int) -> int:
        return self._largest(number)[0]

    def from_root(self, number: int) -> int:
        return self._largest(number if self.is_root else 0)[0]

    def _next_pause(self) -> int:
        """How many iterations fit between two meetings, by rank 0's clock."""
        now = time.perf_counter()
        seconds = (now - self._met) / self._pause
        self._met = now
        return max(1, min(2 * self._pause, int(_BETWEEN_MEETINGS / seconds)))

    def _largest(self, *numbers: int) -> list[int]:
        values = torch.tensor(numbers, dtype=torch.int64)
        with self._connected():
            dist.all_reduce(values, dist.ReduceOp.MAX)
        largest: list[int] = values.tolist()
        return largest

    # Sharing ------------------------------------------------------------------------------------

    def share(self, params: Sequence[Param]) -> None:
        for param in params:
            tensor = param.tensor.detach()
            values = tensor.contiguous()
            with self._guard():
                dist.broadcast(values, 0, group=self._group)
            tensor.copy_(values)

    def average(self, params: Sequence[Param]) -> GradientAverage | None:
        learning = [param for param in params if param.tensor.requires_grad]
        # Other layers may return a gradient, or a view of it, that several share.
        movable = [p.tensor for p in learning if isinstance(p.layer, WeightedLayer)]
        tensors = [p.tensor for p in learning]
        new = new_buffer if self._peers is None else self._peers.new_buffer
        return GradientAverage(tensors, self._start_mean, movable, new)

    def to_means(self, tensors: Sequence[Tensor]) -> None:
        for wait in [self._start_mean(tensor) for tensor in tensors]:
            wait()

    def start_gathering(self, values: Tensor) -> Callable[[], Tensor]:
        if self._peers is not None:
            return self._peers.start_gathering(values)
        sent = values.contiguous()
        gathered = sent.new_empty((self.size * len(sent), *sent.shape[1:]))
        with self._guard():
            work = _gather(gathered, sent, group=self._group, async_op=True)
        return partial(self._wait_for, work, gathered, sent)

    def part_of(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(self.size)[self.rank]

    def start_completing(self, tensor: Tensor) -> Callable[[], Tensor]:
        if self._peers is not None:
            return self._peers.start_completing(tensor)
        with self._guard():
            work = _gather(tensor, self.part_of(tensor), group=self._group, async_op=True)
        return partial(self._wait_for, work, tensor)

    def _start_mean(self, values: Tensor) -> Callable[[], Tensor]:
        """Start averaging `values` over the ranks, in place; returns a function that waits."""
        if self._peers is not None and self._peers.has(values):
            return self._peers.start_averaging(values)
        operation = dist.ReduceOp.AVG
        if self._device.type != "cuda":  # gloo cannot divide
            values.mul_(1 / self.size)
            operation = dist.ReduceOp.SUM
        with self._guard():
            work = dist.all_reduce(values, operation, group=self._group, async_op=True)
        return partial(self._wait_for, work, values)

    def _wait_for(self, work: dist.Work, result: Tensor, *sent: Tensor) -> Tensor:
        """The result when it is there. Up to then, what was sent has to stay where it is."""
        with self._guard():
            work.wait()
        return result

    # Failing ------------------------------------------------------------------------------------

    def _guard(self) -> AbstractContextManager[None]:
        # NCCL's errors are not raised by the call; errors that are raised are about a capture.
        return nullcontext() if self._device.type == "cuda" else self._connected()

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """When a connection breaks, another rank has ended; those that know which report it."""
        try:
            yield
        except RuntimeError as error:
            time.sleep(2 * LONGEST_SILENCE)
            raise CaffeError(f"lost the other ranks: {first_line(error)}") from None

    def _fail(self, error: BaseException) -> None:
        """Let this rank report if it is the first that fails; otherwise wait for the end."""
        if not self._heartbeat.claim(told=isinstance(error, CaffeError)):
            time.sleep(LONGEST_SILENCE)
        self._heartbeat.stop()
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        atexit.register(self._leave, code)

    def _leave(self, code: int) -> None:
        """End without waiting: messages to other ranks would never arrive."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._heartbeat.leave(LONGEST_SILENCE)
        os._exit(code)
