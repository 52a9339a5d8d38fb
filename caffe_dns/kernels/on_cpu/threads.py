"""Work of compiled code, which lets go of the interpreter, in threads as PyTorch has them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch

#: The most threads: each takes some 20 microseconds to start, one after the other.
MOST = 8


def in_shares(*counts: int, work: Callable[..., None]) -> None:
    """Do some work for all of so many items, of one kind or several, each thread a share of each.

    `work` takes the first and the end of each kind.
    """
    threads = min(torch.get_num_threads(), MOST)

    def do(share: int) -> None:
        work(*(count * k // threads for count in counts for k in (share, share + 1)))

    others = [_pool(threads).submit(do, share) for share in range(1, threads)]
    do(0)
    for other in others:
        other.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, "kernels")
