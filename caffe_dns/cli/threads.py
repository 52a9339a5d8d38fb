"""How many threads PyTorch uses on a CPU, and how long they spin while they wait.

Between two operations, the threads of GNU OpenMP spin for some 10 ms before they sleep. Alone on a
machine they can start on the next operation at once. Beside other programs they take the cores from
the very threads they wait for, and training takes thirty times as long. A thread that sleeps has
to wait for a core when it wakes up, and the others wait for it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

#: How long a waiting thread spins: 55 microseconds on a Xeon, 75 on an EPYC (Zen 4), about the time
#: between two operations.
_TURNS = "3000"
#: Variables that override how threads wait.
_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
#: Nanoseconds that a thread asks to run for at a time, a fifth of the usual on eight cores.
_SLICE = 500_000
#: The numbers of sched_getattr and sched_setattr, for which not every C library has functions.
_CALLS = {"x86_64": (315, 314), "aarch64": (275, 274)}
#: struct sched_attr of the kernel: size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES = "IIQiIQQQ"


def wait_briefly() -> None:
    """Let waiting threads spin for a short time, unless the environment says otherwise.

    Has no effect once PyTorch is loaded. Results do not change.
    """
    if _POLICY not in os.environ:
        os.environ.setdefault(_SPINS, _TURNS)


def wake_soon() -> None:
    """Let this thread, and those that it starts, get a core soon after they have waited.

    Linux, from 6.12 on, lets a thread that wakes up run before others if it asks for shorter turns,
    as long as it has had less than its share of the core; that share stays what it is. Elsewhere,
    and where it is forbidden or a user has chosen another policy or shorter turns, nothing changes.
    """
    calls = _CALLS.get(os.uname().machine) if sys.platform == "linux" else None
    if calls is None:
        return
    library = ctypes.CDLL(None)
    size = struct.calcsize(_ATTRIBUTES)
    held = ctypes.create_string_buffer(size)
    read, write = map(ctypes.c_long, calls)
    if library.syscall(read, 0, held, size, 0) == 0:
        # Turns have no length in older kernels.
        _, policy, flags, nice, _, turn, *_ = struct.unpack(_ATTRIBUTES, held.raw)
        if policy == os.SCHED_OTHER and turn > _SLICE:
            wanted = struct.pack(_ATTRIBUTES, size, policy, flags, nice, 0, _SLICE, 0, 0)
            library.syscall(write, 0, wanted, 0)


def use(count: int) -> None:
    """Compute with this many threads."""
    import torch

    torch.set_num_threads(count)


def described() -> str:
    """The number of threads, and the variables that set how they wait."""
    import torch

    waiting = [f"{name}={os.environ[name]}" for name in (_POLICY, _SPINS) if name in os.environ]
    return f"{torch.get_num_threads()} threads" + (f" ({', '.join(waiting)})" if waiting else "")
