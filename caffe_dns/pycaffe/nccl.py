"""`caffe.NCCL`: what several processes started by a program exchange (`parallel.cpp`).

Each creates its own solver; they share only `bcast` and the gradients of every iteration. On a GPU
these go through NCCL, on a CPU through gloo.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from multiprocessing.util import Finalize

import torch.distributed as dist

from caffe_dns.errors import BadValue, CaffeError
from caffe_dns.files.reading import is_count
from caffe_dns.parallel.ranks import JoinedRanks, Ranks
from caffe_dns.parallel.world import World
from caffe_dns.pycaffe.mode import mode
from caffe_dns.pycaffe.solver import Solver

_HOST = "127.0.0.1"
#: The stores of this process in which others meet; they last as long as it does.
_stores: list[dist.TCPStore] = []


def has_nccl() -> bool:
    """Whether `NCCL` can be made: in every PyTorch that lets processes exchange something."""
    return dist.is_available()


class NCCL:
    """Averages the gradients of the processes that train together.

    `Solver.add_callback` takes it. All processes, as many as `set_solver_count` says, make one with
    the same `uid` for a solver of the same net, each once. When one of them ends by an error, the
    others end, too. Raises CaffeError where they do not meet.
    """

    def __init__(self, solver: Solver, uid: bytes | str) -> None:
        self._solver = solver
        self._ranks: Ranks = mode.ranks()
        if self._ranks.size > 1:
            self._ranks = _join(self._ranks, uid, solver)

    @staticmethod
    def new_uid() -> bytes:
        """A name for a meeting of processes of this host, which this process has to outlive."""
        _stores.append(dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False))
        return f"{_HOST}:{_stores[-1].port}".encode()

    def bcast(self) -> None:
        """Take over weights, masks and seed of rank 0."""
        self._solver.bring_writes()
        self._solver.core.follow_root(self._ranks)

    def on_start(self) -> None:
        """Nothing is to be done when an iteration begins."""

    def on_gradients_ready(self) -> None:
        """Replace all gradients by their means."""
        self._solver.core.average(self._ranks)

    def __call__(self, layer: int) -> None:
        """`Net.after_backward` takes it as in Caffe; gradients wait for `on_gradients_ready`."""


class _ProgramRanks(JoinedRanks):
    """Ranks that meet in the store of the process that has made their uid."""

    def meet(self, timeout: timedelta) -> dist.Store:
        address, port = self.world.address, self.world.port
        return dist.TCPStore(
            address, port, is_master=False, wait_for_workers=False, timeout=timeout
        )


def _join(ranks: Ranks, uid: bytes | str, solver: Solver) -> JoinedRanks:
    if dist.is_initialized():
        raise CaffeError("this process has joined others already")
    address, port = _place(uid)
    rank, size = ranks.rank, ranks.size
    joined = _ProgramRanks(World(rank, size, rank, size, address, port, store_is_kept=True))
    joined.__enter__()
    # Also in processes of multiprocessing, which know no atexit.
    Finalize(None, _leave, (joined,), exitpriority=1)
    mode.heed_log_level()
    joined.use(solver.core.net.context.device)
    return joined


def _place(uid: bytes | str) -> tuple[str, int]:
    text = uid.decode(errors="replace") if isinstance(uid, bytes) else uid
    address, _, port = text.rpartition(":")
    if not address or not is_count(port):
        raise BadValue(f"'{text}' is not what NCCL.new_uid() has given")
    return address, int(port)


def _leave(ranks: JoinedRanks) -> None:
    """Wait for the others, or let them know what this process ends by."""
    error = sys.exc_info()[1] or getattr(sys, "last_value", None)
    if isinstance(error, SystemExit) and not error.code:
        error = None
    ranks.__exit__(type(error) if error else None, error, None)
