"""Records CUDA graphs while the rest of the program goes on."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def recording(graph: torch.cuda.CUDAGraph) -> Iterator[None]:
    """`with recording(graph):` records what this thread asks of the GPU; nothing is computed.

    Raises RuntimeError for what cannot be recorded.
    """
    was_enabled = gc.isenabled()
    # To free another graph meanwhile would end this one, and garbage may hold one.
    gc.disable()
    try:
        # The thread that reads ahead goes on making CUDA calls.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            yield
    finally:
        if was_enabled:
            gc.enable()
