"""How many threads PyTorch uses on a CPU, and how long they spin while they wait.

Between two operations, the threads of GNU OpenMP spin for some 10 ms before they sleep. Alone on a
machine they can start on the next operation at once. Beside other programs they take the cores from
the very threads they wait for, and training takes thirty times as long.
"""

from __future__ import annotations

import os

#: How long a waiting thread spins: 55 microseconds on a Xeon, 75 on an EPYC (Zen 4), about the time
#: between two operations.
_TURNS = "3000"
#: Variables that override how threads wait.
_POLICY, _SPINS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"


def wait_briefly() -> None:
    """Let waiting threads spin for a short time, unless the environment says otherwise.

    Has no effect once PyTorch is loaded. Results do not change.
    """
    if _POLICY not in os.environ:
        os.environ.setdefault(_SPINS, _TURNS)


def use(count: int) -> None:
    """Compute with this many threads."""
    import torch

    torch.set_num_threads(count)


def described() -> str:
    """The number of threads, and the variables that set how they wait."""
    import torch

    waiting = [f"{name}={os.environ[name]}" for name in (_POLICY, _SPINS) if name in os.environ]
    return f"{torch.get_num_threads()} threads" + (f" ({', '.join(waiting)})" if waiting else "")
