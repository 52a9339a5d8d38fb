"""Kernels in Triton, for what would take PyTorch many small ones on a GPU.

Each has an equivalent in plain PyTorch, which runs on a CPU and wherever Triton is missing. The few
for a CPU, compiled by numba, are in `on_cpu`. Nothing here knows layers or solvers.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from json import JSONDecodeError

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import first_line

#: The prefetching threads and the training thread may ask at the same time.
_trial = threading.Lock()


def wanted(device: torch.device) -> bool:
    """Whether our own kernels should run on this device."""
    if device.type != "cuda":
        return False
    with _trial:
        return _works()


def suit(blob: Tensor) -> bool:
    """Whether they should run on this blob, whose axes 0 and 1 are images and channels."""
    if not wanted(blob.device):
        return False
    from caffe_dns.kernels.layout import fits

    return fits(blob)


def is_capturing(tensor: Tensor) -> bool:
    """Whether operations on the tensor are currently recorded as a CUDA graph."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


@cache
def _works() -> bool:
    """Whether Triton is installed and can compile; logs it once if not."""
    try:
        from caffe_dns.kernels.sgd import SGDKernel

        value = torch.zeros(1, device="cuda")
        kernel = SGDKernel([value], [torch.zeros_like(value)], [1.0], [0.0], momentum=0.0)
        kernel.run([torch.ones_like(value)], torch.ones((), device="cuda"))
        return float(value) == -1.0
    # Triton's errors have no common base class, and compilers fail in many ways.
    except Exception as error:
        log.info(
            "Running PyTorch's own kernels: Triton does not work "
            f"({first_line(error)}){_advice(error)}"
        )
        return False


def _advice(error: Exception) -> str:
    """Advice if the problem is Triton's folder of compiled kernels."""
    if isinstance(error, OSError):
        return "; TRITON_CACHE_DIR may name a folder that can be written"
    if isinstance(error, JSONDecodeError):
        return f"; its {damaged_folder()}"
    return ""


def damaged_folder() -> str:
    """The message that Triton's folder of compiled kernels is damaged, with advice."""
    folder = os.environ.get("TRITON_CACHE_DIR") or "~/.triton/cache"
    return f"folder of compiled kernels is damaged: remove {folder}"
