"""What renews masks, recorded as a CUDA graph. Here there is none: PyTorch's are others."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from caffe_dns.surgery.masked_layers import Replayed


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    def replay(self) -> None:
        pass


@pytest.mark.parametrize("enabled", [True, False])
def test_no_graph_is_freed_while_another_is_recorded(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To free one calls CUDA, which ends what this thread records."""
    collecting: list[bool] = []

    @contextmanager
    def recording(graph: Graph, **_: str) -> Iterator[None]:
        collecting.append(gc.isenabled())
        yield
        collecting.append(gc.isenabled())

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    replayed = Replayed(lambda: 7, torch.device("cuda"))
    if not enabled:
        gc.disable()
    try:
        assert [replayed() for _ in range(4)] == [7] * 4
        assert gc.isenabled() is enabled
    finally:
        gc.enable()
    assert collecting == [False, False]
