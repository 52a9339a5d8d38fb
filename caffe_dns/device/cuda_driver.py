"""Queries the CUDA driver for properties of a GPU that PyTorch does not pass on.

Everything else is asked of PyTorch. Nothing here changes the GPU's state.
"""

from __future__ import annotations

import ctypes
import sys
from enum import IntEnum

from caffe_dns.errors import CaffeError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


class Attribute(IntEnum):
    """Names and numbers of CUdevice_attribute (cuda.h)."""

    MAX_THREADS_PER_BLOCK = 1
    MAX_BLOCK_DIM_X = 2
    MAX_BLOCK_DIM_Y = 3
    MAX_BLOCK_DIM_Z = 4
    MAX_GRID_DIM_X = 5
    MAX_GRID_DIM_Y = 6
    MAX_GRID_DIM_Z = 7
    MAX_SHARED_MEMORY_PER_BLOCK = 8
    TOTAL_CONSTANT_MEMORY = 9
    WARP_SIZE = 10
    MAX_PITCH = 11
    MAX_REGISTERS_PER_BLOCK = 12
    CLOCK_RATE = 13
    TEXTURE_ALIGNMENT = 14
    GPU_OVERLAP = 15
    MULTIPROCESSOR_COUNT = 16
    KERNEL_EXEC_TIMEOUT = 17


def device_attributes(gpu: int) -> dict[Attribute, int]:
    """All attributes of GPU number `gpu`, sizes in bytes and the clock rate in kHz.

    Raises CaffeError where there is no CUDA driver or no such GPU.
    """
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        raise CaffeError(f"the CUDA driver ({_LIBRARY}) cannot be loaded") from None
    _check(driver.cuInit(0))
    device = ctypes.c_int()
    _check(driver.cuDeviceGet(ctypes.byref(device), gpu))
    values = {}
    for attribute in Attribute:
        value = ctypes.c_int()
        _check(driver.cuDeviceGetAttribute(ctypes.byref(value), int(attribute), device))
        values[attribute] = value.value
    return values


def _check(status: int) -> None:
    if status:
        raise CaffeError(f"the CUDA driver reports error {status}")
