"""What pycaffe sets for the whole process: device, seed, log, and what dns adds to it.

Nets and solvers look here once, when they are made.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

import torch

from caffe_dns import log as logging
from caffe_dns.device.selection import CPU, scoring_device
from caffe_dns.errors import CaffeError
from caffe_dns.layers import layer_types


@dataclass
class Mode:
    """The settings. `seed` is None where every net is to draw one of its own."""

    gpu: bool = False
    device_id: int = 0
    seed: int | None = None
    surgery: bool = True
    python_layers: bool = False
    quiet: bool = False

    def device(self) -> torch.device:
        """The device for new nets."""
        return scoring_device(str(self.device_id)) if self.gpu else CPU

    def new_seed(self) -> int:
        """The seed for a new net."""
        return secrets.randbits(31) if self.seed is None else self.seed


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
    """The seed of new nets, and of new solvers whose definition gives none."""
    mode.seed = seed


def set_surgery(enabled: bool) -> None:
    """Whether layers of the standard types own masks in new nets, and new solvers prune them.

    They do from the start, as with the command line; False makes new nets plain Caffe's.
    """
    mode.surgery = enabled


def allow_python_layers(allowed: bool = True) -> None:
    """Whether definitions of new nets may run code, by layers of the type Python. Off at first."""
    mode.python_layers = allowed


def init_log(level: int = 0) -> None:
    """Log from this severity on: 0 everything, from 1 on errors only.

    It is called with GLOG_minloglevel from the environment when caffe is imported.
    """
    mode.quiet = level > 0
    logging.set_quiet(mode.quiet)


def log(message: str) -> None:
    """Write a line of severity I to the log."""
    logging.info(message)


def layer_type_list() -> list[str]:
    """The layer types that a definition can name."""
    return list(layer_types)


def heed_environment() -> None:
    """Take over the log level of a program that sets GLOG_minloglevel before importing caffe."""
    level = os.environ.get("GLOG_minloglevel", "")  # noqa: SIM112
    if level.isdigit():
        init_log(int(level))


def _check_gpu(device_id: int) -> None:
    available = torch.cuda.device_count()
    if not 0 <= device_id < available:
        raise CaffeError(
            f"there is no GPU {device_id} that PyTorch can use; it has {available}. "
            "Leave set_device and set_mode_gpu out to run on the CPU"
        )
