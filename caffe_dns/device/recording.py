"""Records CUDA graphs while the rest of the program goes on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def recording(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """`with recording(graph):` records GPU calls as a CUDA graph without running them.

    Raises RuntimeError for calls that cannot be recorded.
    """
    was_enabled = gc.isenabled()
    # Freeing another graph meanwhile would end this recording, and garbage may contain one.
    gc.disable()
    try:
        # The prefetching thread continues to make CUDA calls.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            yield
    finally:
        if was_enabled:
            gc.enable()
