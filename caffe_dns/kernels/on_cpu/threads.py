"""Work of compiled code, which lets go of the interpreter, in as many threads as PyTorch has."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch


def in_shares(*counts: int, work: Callable[..., None]) -> None:
    """Do some work for all of so many items, of one kind or several, each thread a share of each.

    `work` takes the first and the end of each kind.
    """
    threads = torch.get_num_threads()

    def do(share: int) -> None:
        work(*(count * k // threads for count in counts for k in (share, share + 1)))

    others = [_pool(threads).submit(do, share) for share in range(1, threads)]
    do(0)
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, "kernels")
