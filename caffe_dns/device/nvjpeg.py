"""The units of a GPU that decode JPEGs (A100, H100 and later ones of their kind), by nvJPEG.

They give the planes that libjpeg gives, bit for bit; what is made of these is done elsewhere. Other
ways that nvJPEG has to decode round otherwise, and are left alone.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from caffe_dns.errors import CaffeError

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"

#: Where packages have the library, which may be there without being on the loader's path.
_PACKAGES = {"nvidia": "*/lib/libnvjpeg.so.*", "torchvision": "../torchvision.libs/libnvjpeg*.so.*"}
_NAMES = ("libnvjpeg.so.13", "libnvjpeg.so.12")
#: Of nvjpeg.h: NVJPEG_BACKEND_HARDWARE, NVJPEG_OUTPUT_YUV, NVJPEG_STATUS_ALLOCATOR_FAILURE.
_HARDWARE, _PLANES, _NO_MEMORY = 3, 1, 5


@lru_cache
def jpeg_units(device: torch.device) -> JpegUnits:
    """Those of a GPU. Raises CaffeError where it has none, or nvJPEG is missing."""
    return JpegUnits(device)


class JpegUnits:
    """What decodes JPEGs on one GPU, several at once. Threads may use it, one at a time does."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise CaffeError("decode_on_gpu: this net is on a CPU; leave it out, or give a GPU")
        self._device = device
        self._library = _load()
        self._busy = threading.Lock()
        #: For how many JPEGs at a time it is ready.
        self._count = 0
        self._handle, self._state = ctypes.c_void_p(), ctypes.c_void_p()
        with torch.cuda.device(device):
            torch.cuda.current_stream(device).synchronize()  # or the thread may have no context
            status = self._library.nvjpegCreateEx(
                _HARDWARE, None, None, 0, ctypes.byref(self._handle)
            ) or self._library.nvjpegJpegStateCreate(self._handle, ctypes.byref(self._state))
        if status:
            raise CaffeError(
                f"decode_on_gpu: this GPU has no units that decode JPEGs, or this process may not "
                f"use them (nvJPEG's status {status})"
            )

    def decode(self, jpegs: Numbers, planes: Numbers) -> bool:
        """Decode all into memory of the GPU, where `planes` [N, 8] says; whether that was done.

        A row of `jpegs` [N, 2] has the address of one on the host, and its bytes; a row of `planes`
        the addresses of Y, Cb and Cr, one that is not used, and the bytes from line to line of
        each. The work is ordered on the current stream, and done on return.
        """
        data, sizes = jpegs[:, 0].copy(), jpegs[:, 1].copy()
        stream = torch.cuda.current_stream(self._device)
        with self._busy:
            stream.synchronize()
            status = self._prepare(len(jpegs)) or self._library.nvjpegDecodeBatched(
                self._handle,
                self._state,
                *(ctypes.c_void_p(each.ctypes.data) for each in (data, sizes, planes)),
                ctypes.c_void_p(stream.cuda_stream),
            )
            stream.synchronize()
        if status:
            self._count = 0
        if status == _NO_MEMORY:
            raise CaffeError("decode_on_gpu: the GPU has no memory left to decode JPEGs")
        return not status

    def _prepare(self, count: int) -> int:
        """The status of getting ready for so many JPEGs at a time."""
        if count == self._count:
            return 0
        self._count = count
        status: int = self._library.nvjpegDecodeBatchedInitialize(
            self._handle, self._state, count, 1, _PLANES
        )
        return status


def is_there() -> bool:
    """Whether nvJPEG is to be found, in a package or on the loader's path."""
    try:
        _load()
    except CaffeError:
        return False
    return True


def _load() -> Any:
    """nvJPEG. Raises CaffeError where it is not to be found."""
    for name in [*_installed(), *_NAMES]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CaffeError(
        "decode_on_gpu: nvJPEG is missing, which `pip install nvidia-nvjpeg` brings (with CUDA 12 "
        "nvidia-nvjpeg-cu12)"
    )


def _installed() -> Iterator[str]:
    for package, pattern in _PACKAGES.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations if spec else None) or ():
            yield from map(str, sorted(Path(folder).glob(pattern)))
