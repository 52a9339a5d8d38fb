"""Kernels of our own, in Triton, for what PyTorch would do in many small ones on a GPU.

Each has a twin in plain PyTorch, which is what runs on a CPU and wherever Triton is missing. The
few for a CPU, compiled by numba, are in `on_cpu`.
Nothing here knows layers or solvers.
"""

from __future__ import annotations

import threading
from functools import cache

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import first_line

#: The threads that read and the one that computes ask at the same time.
_trial = threading.Lock()


def wanted(device: torch.device) -> bool:
    """Whether kernels of our own are to run on this device."""
    if device.type != "cuda":
        return False
    with _trial:
        return _works()


def suit(blob: Tensor) -> bool:
    """Whether they are to run on this blob: its axes 0 and 1 are images and channels."""
    if not wanted(blob.device):
        return False
    from caffe_dns.kernels.layout import fits

    return fits(blob)


def is_capturing(tensor: Tensor) -> bool:
    """Whether what is done with the tensor now is recorded as a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@cache
def _works() -> bool:
    """Whether Triton is there and can compile; says so once if it cannot."""
    try:
        from caffe_dns.kernels.sgd import SGDKernel

        value = torch.zeros(1, device="cuda")
        kernel = SGDKernel([value], [torch.zeros_like(value)], [1.0], [0.0], momentum=0.0)
        kernel.run([torch.ones_like(value)], torch.ones((), device="cuda"))
        return float(value) == -1.0
    # Triton's errors have no base of their own, and compilers fail in many ways.
    except Exception as error:
        log.info(f"Running PyTorch's own kernels: Triton does not work ({first_line(error)})")
        return False
