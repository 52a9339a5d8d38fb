"""The hardware JPEG decoders of a GPU (A100, H100 and later ones of their kind), by nvJPEG.

They give the same planes as libjpeg, bit for bit; what is made of these is done elsewhere. nvJPEG's
other backends round differently and are not used.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from caffe_dns.errors import CaffeError

Numbers: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"
Flags: TypeAlias = "np.ndarray[Any, np.dtype[np.bool_]]"

#: Where packages have the library, which may be there without being on the loader's path.
_PACKAGES = {"nvidia": "*/lib/libnvjpeg.so.*", "torchvision": "../torchvision.libs/libnvjpeg*.so.*"}
_NAMES = ("libnvjpeg.so.13", "libnvjpeg.so.12")
#: Of nvjpeg.h: NVJPEG_BACKEND_HARDWARE, NVJPEG_OUTPUT_YUV, NVJPEG_STATUS_ALLOCATOR_FAILURE.
_HARDWARE, _PLANES, _NO_MEMORY = 3, 1, 5
#: How many JPEGs a thread gives the units at a time.
_MOST_TOGETHER = 64


@lru_cache
def jpeg_units(device: torch.device, threads: int) -> JpegUnits:
    """Those of a GPU. Raises CaffeError where it has none, or nvJPEG is missing."""
    return JpegUnits(device, threads)


class JpegUnits:
    """What decodes JPEGs on one GPU, some at a time and in the order in which they come.

    A thread that has given some to the units waits for them, with a core of its own; meanwhile the
    others read the next ones and copy them there. Threads may use it.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        if device.type != "cuda":
            raise CaffeError("decode_on_gpu: this net is on a CPU; leave it out, or give a GPU")
        library = _load()
        #: Nothing runs on it, so that memory that is taken for it is there at once.
        self.stream = torch.cuda.Stream(device)
        self._threads = ThreadPoolExecutor(threads, "decode on GPU")
        self._idle = [_Decoder(library, device) for _ in range(threads)]

    def start(self, jpegs: Numbers, planes: Numbers, *kept: object) -> Callable[[], Flags]:
        """Start to decode all into memory of the GPU, where `planes` [N, 8] says.

        A row of `jpegs` [N, 2] has the address of one on the host, and its bytes; a row of `planes`
        the addresses of Y, Cb and Cr, one that is not used, and the bytes from line to line of
        each. That memory is used from now on, whatever streams have still to do; `kept` are the
        owners of both. Returns what waits for the end, and says which were decoded, [N]: one that
        cannot be keeps those from it that it goes with. That may raise CaffeError.
        """
        count = len(jpegs)
        step = -(-count // -(-count // _MOST_TOGETHER))  # equal parts, for each of which is ready
        parts = [slice(first, first + step) for first in range(0, count, step)]
        statuses = [
            self._threads.submit(self._decode, jpegs[part], planes[part], *kept) for part in parts
        ]

        def wait() -> Flags:
            found = [status.result() for status in statuses]
            if _NO_MEMORY in found:
                raise CaffeError("decode_on_gpu: the GPU has no memory left to decode JPEGs")
            return np.array(found).repeat(step)[:count] == 0

        return wait

    def _decode(self, jpegs: Numbers, planes: Numbers, *_: object) -> int:
        """Decode some; nvJPEG's status."""
        decoder = self._idle.pop()
        try:
            return decoder.decode(jpegs, planes)
        finally:
            self._idle.append(decoder)


class _Decoder:
    """What a thread decodes with, on a stream of its own."""

    def __init__(self, library: Any, device: torch.device) -> None:
        self._library = library
        #: For how many JPEGs at a time it is ready.
        self._count = 0
        self._handle, self._state = ctypes.c_void_p(), ctypes.c_void_p()
        self._device = device
        with torch.cuda.device(device):
            # Of high priority, or it would have to wait for what the net does on its own.
            self._stream = torch.cuda.Stream(device, priority=-1)
            self._stream.synchronize()  # or the thread may have no context
            status = library.nvjpegCreateEx(
                _HARDWARE, None, None, 0, ctypes.byref(self._handle)
            ) or library.nvjpegJpegStateCreate(self._handle, ctypes.byref(self._state))
        if status:
            raise CaffeError(
                f"decode_on_gpu: this GPU has no units that decode JPEGs, or this process may not "
                f"use them (nvJPEG's status {status})"
            )

    def decode(self, jpegs: Numbers, planes: Numbers) -> int:
        """Decode some, as `JpegUnits.start` has them; nvJPEG's status."""
        data, sizes, planes = jpegs[:, 0].copy(), jpegs[:, 1].copy(), planes.copy()
        with torch.cuda.device(self._device):
            self._stream.synchronize()  # or the thread may have no context
            status: int = self._prepare(len(data)) or self._library.nvjpegDecodeBatched(
                self._handle,
                self._state,
                *(ctypes.c_void_p(each.ctypes.data) for each in (data, sizes, planes)),
                ctypes.c_void_p(self._stream.cuda_stream),
            )
            self._stream.synchronize()
        if status:
            self._count = 0
        return status

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
