"""pycaffe's settings for the whole process: device, seed, log, and what dns adds to them.

Nets and solvers read them once, when they are created.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count

import torch

from caffe_dns import log as logging
from caffe_dns import rng
from caffe_dns.device.selection import CPU, scoring_device
from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import is_count
from caffe_dns.layers import layer_types
from caffe_dns.parallel.ranks import Ranks


@dataclass
class Mode:
    """The settings. `seeds` is None where every net is to draw a seed of its own.

    `surgery` is None where each definition says by its fields whether its layers own masks.
    """

    gpu: bool = False
    device_id: int = 0
    seeds: Iterator[int] | None = None
    surgery: bool | None = None
    python_layers: bool = True
    quiet: bool = False
    solver_count: int = 1
    solver_rank: int = 0

    def device(self) -> torch.device:
        """The device for new nets."""
        return scoring_device(str(self.device_id)) if self.gpu else CPU

    def new_seed(self) -> int:
        """The seed for a new net."""
        return secrets.randbits(31) if self.seeds is None else next(self.seeds)

    def ranks(self) -> Ranks:
        """This process among those that train together, for new solvers.

        Raises CaffeError for a rank that there is not.
        """
        if self.solver_rank >= self.solver_count:
            raise CaffeError(
                f"set_solver_rank({self.solver_rank}) of set_solver_count({self.solver_count}): "
                "ranks count from 0 and lie below the number of solvers"
            )
        return SeparateRanks(self.solver_rank, self.solver_count)

    def heed_log_level(self) -> None:
        """Log what the program wants to see, and on rank 0 alone."""
        logging.set_quiet(self.quiet or self.solver_rank > 0)


class SeparateRanks(Ranks):
    """Ranks that train apart: what they exchange, the program has them exchange by `NCCL`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = self.local_size = size
        self.are_alike = False  # Nothing may count on it before they have met.


mode = Mode()


def set_mode_cpu() -> None:
    """New nets run on the CPU, as they do from the start."""
    mode.gpu = False


def set_mode_gpu() -> None:
    """New nets run on the GPU that `set_device` names. Raises CaffeError where there is none."""
    _check_gpu(mode.device_id)
    mode.gpu = True


def set_device(device_id: int) -> None:
    """The GPU for `set_mode_gpu`, counted from 0. Raises CaffeError where there is no such GPU."""
    _check_gpu(device_id)
    mode.device_id = device_id


def set_random_seed(seed: int) -> None:
    """The seed of the next net, or of the next solver whose definition gives none.

    Those after it have other seeds, the same ones whenever this one is set.
    """
    mode.seeds = _seeds_from(seed)


def set_surgery(enabled: bool | None) -> None:
    """Whether layers of the standard types own masks in new nets, and new solvers prune them.

    With None, as from the start, they do where the definition has any field about masks.
    """
    mode.surgery = enabled


def allow_python_layers(allowed: bool = True) -> None:
    """Whether definitions of new nets may run code, by layers of the type Python. On at first."""
    mode.python_layers = allowed


def solver_count() -> int:
    """How many processes train together."""
    return mode.solver_count


def set_solver_count(solvers: int) -> None:
    """How many processes train together; new solvers see their part of the records each."""
    if solvers < 1:
        raise CaffeError(f"the number of solvers is at least 1, not {solvers}")
    mode.solver_count = solvers


def solver_rank() -> int:
    """The number of this process among those that train together."""
    return mode.solver_rank


def set_solver_rank(rank: int) -> None:
    """The number of this process, counted from 0; 0 tests, logs and writes snapshots."""
    if rank < 0:
        raise CaffeError(f"solvers count from 0, so that there is none {rank}")
    mode.solver_rank = rank
    mode.heed_log_level()


def set_multiprocess(multiprocess: bool) -> None:
    """Whether solvers that train together are processes; here they are so in any case."""


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Log from this severity on: 0 everything, from 1 on errors only; the log goes to stderr.

    It is called with GLOG_minloglevel from the environment when caffe is imported.
    """
    if not stderr:
        raise CaffeError("the log goes to stderr; there are no log files")
    mode.quiet = level > 0
    mode.heed_log_level()


def log(message: str) -> None:
    """Write a line of severity I to the log."""
    logging.info(message)


def layer_type_list() -> list[str]:
    """The layer types that a definition can name."""
    return list(layer_types)


def heed_environment() -> None:
    """Take over the log level of a program that sets GLOG_minloglevel before importing caffe."""
    level = os.environ.get("GLOG_minloglevel", "")  # noqa: SIM112
    if is_count(level):
        init_log(int(level))


def _seeds_from(seed: int) -> Iterator[int]:
    """This seed, and as many that follow from it as are asked for."""
    return chain([seed], (rng.key(seed, "net", number) % 2**31 for number in count(1)))


def _check_gpu(device_id: int) -> None:
    available = torch.cuda.device_count()
    if not 0 <= device_id < available:
        raise CaffeError(
            f"there is no GPU {device_id} that PyTorch can use; it has {available}. "
            "Leave set_device and set_mode_gpu out to run on the CPU"
        )
