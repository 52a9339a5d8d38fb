"""A GPU that is made ready while PyTorch and the rest of a command are being loaded.

The driver takes a third of a second to set a GPU up for a process, and Triton as long to find out
whether its kernels are in its cache. Neither needs what is being loaded meanwhile.
"""

from __future__ import annotations

import threading

from caffe_dns.files.reading import is_count


def set_up(flag: str | None) -> threading.Thread | None:
    """Begin with the GPU that `-gpu` names, if that is a single one.

    Whatever fails says nothing here: the command will try the same. It is waited for where a
    command ends early, as nobody may leave the driver in the middle of it.
    """
    if not flag or not is_count(flag):
        return None
    thread = threading.Thread(target=_set_up, args=(int(flag),))
    thread.start()
    return thread


def _set_up(gpu: int) -> None:
    if _retain_context(gpu):
        _try_kernels(gpu)


def _retain_context(gpu: int) -> bool:
    """The context that PyTorch will find there, and use."""
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), gpu):
        return False
    return not driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)


def _try_kernels(gpu: int) -> None:
    """Waits until PyTorch is there."""
    import torch

    from caffe_dns import kernels

    if gpu < torch.cuda.device_count():
        with torch.cuda.device(gpu):
            kernels.wanted(torch.device("cuda", gpu))
