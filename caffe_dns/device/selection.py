"""Which device a command runs on, from `-gpu` and the solver's `solver_mode` (tools/caffe.cpp)."""

from __future__ import annotations

from typing import Protocol

import torch

from caffe_dns import log
from caffe_dns.device.heap import keep_freed_memory
from caffe_dns.errors import CaffeError
from caffe_dns.files.reading import is_count
from caffe_dns.proto.caffe_pb2 import SolverParameter

CPU = torch.device("cpu")


class LocalRank(Protocol):
    """One of several processes that train together."""

    @property
    def local_rank(self) -> int: ...

    @property
    def local_size(self) -> int: ...


def parse_gpus(flag: str) -> list[int]:
    """The device ids of `-gpu`: `0`, `0,1`, `all`, or nothing.

    Raises CaffeError for anything else and for a GPU that does not exist.
    """
    if not flag:
        return []
    available = torch.cuda.device_count()
    if flag == "all":
        if not available:
            raise CaffeError("-gpu all: there is no GPU that PyTorch can use; leave -gpu out")
        return list(range(available))
    gpus = []
    for part in flag.split(","):
        if not is_count(part.strip()):
            raise CaffeError(f"-gpu: '{flag}' is not a device id, several with commas, or 'all'")
        gpu = int(part)
        if gpu >= available:
            there = f"there are {available}" if available else "there is none"
            raise CaffeError(f"-gpu {flag}: no GPU {gpu}; {there} that PyTorch can use")
        if gpu in gpus:
            raise CaffeError(f"-gpu {flag}: GPU {gpu} is named twice")
        gpus.append(gpu)
    return gpus


def training_device(
    flag: str, param: SolverParameter, world: LocalRank | None = None
) -> torch.device:
    """The device to train on; logs it as Caffe does.

    `solver_mode: GPU` without a GPU gets a warning and the CPU; an explicit `-gpu` gets an error.
    In a `world` of several processes, each takes the GPU at the index of its local rank in `-gpu`
    or, without that flag, among all GPUs; the CPU if there is none or `solver_mode` is CPU.
    """
    gpus = parse_gpus(flag)
    wants_gpu = param.HasField("solver_mode") and param.solver_mode == SolverParameter.GPU
    if world is not None:
        gpus = gpus or _gpus_of(world, param)
    elif not flag and wants_gpu:
        if torch.cuda.is_available():
            gpus = parse_gpus(str(param.device_id))
        else:
            log.warning("solver_mode is GPU, but there is no GPU that PyTorch can use")
    if not gpus:
        log.info("Use CPU.")
        keep_freed_memory()
        return CPU
    log.info(f"Using GPUs {', '.join(map(str, gpus))}")
    for gpu in gpus:
        log.info(f"GPU {gpu}: {torch.cuda.get_device_name(gpu)}")
    return use_gpu(gpus[0] if world is None else _gpu_of(world, gpus))


def _gpus_of(world: LocalRank, param: SolverParameter) -> list[int]:
    """The GPUs for the processes on this host when no flag names any."""
    if param.HasField("solver_mode") and param.solver_mode == SolverParameter.CPU:
        return []
    return list(range(min(torch.cuda.device_count(), world.local_size)))


def _gpu_of(world: LocalRank, gpus: list[int]) -> int:
    """The GPU of this process among those for all on this host."""
    if len(gpus) < world.local_size:
        raise CaffeError(
            f"{len(gpus)} GPU(s) for {world.local_size} processes on this host; start as many "
            "processes as there are GPUs"
        )
    return gpus[world.local_rank]


def scoring_device(flag: str) -> torch.device:
    """The device to score on, the first of `-gpu`; logs it as Caffe does."""
    gpus = parse_gpus(flag)
    if not gpus:
        log.info("Use CPU.")
        return CPU
    log.info(f"Use GPU with device ID {gpus[0]}")
    log.info(f"GPU device name: {torch.cuda.get_device_name(gpus[0])}")
    return use_gpu(gpus[0])


def use_gpu(gpu: int) -> torch.device:
    """Make this GPU the current one, with the settings that dns uses throughout."""
    # Caffe's numbers are float32 throughout; torch would let cuDNN round to TF32.
    torch.backends.cudnn.allow_tf32 = False
    # cuDNN times its algorithms, once for each shape.
    torch.backends.cudnn.benchmark = True
    torch.cuda.set_device(gpu)
    return torch.device("cuda", gpu)
