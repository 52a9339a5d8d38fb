"""A GPU that the driver sets up for this process while PyTorch is being loaded.

Both take long, a third of a second and more, and neither needs the other. PyTorch then finds the
device's context there, and uses it.
"""

from __future__ import annotations

import threading


def set_up(flag: str | None) -> threading.Thread | None:
    """Begin with the GPU that `-gpu` names, if that is a single one.

    Whatever fails says nothing here: PyTorch will try the same.
    """
    if not flag or not flag.isdecimal():
        return None
    thread = threading.Thread(target=_retain_context, args=(int(flag),), daemon=True)
    thread.start()
    return thread


def _retain_context(gpu: int) -> None:
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if not driver.cuInit(0) and not driver.cuDeviceGet(ctypes.byref(device), gpu):
        driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
