"""What renews masks, recorded as a CUDA graph. Here there is none: PyTorch's are others."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from caffe_dns.surgery.masked_layers import Replayed


class Graph:
    """In place of torch.cuda.CUDAGraph."""

    def __init__(self) -> None:
        self.itself = self

    def replay(self) -> None:
        pass


def test_graphs_that_nobody_has_are_gone_before_another_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To free one calls CUDA, which ends what this thread records."""
    earlier = weakref.ref(Graph())
    found: list[bool] = []

    @contextmanager
    def recording(graph: Graph, **_: str) -> Iterator[None]:
        found.append(earlier() is None)
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    replayed = Replayed(lambda: 7, torch.device("cuda"))
    gc.disable()
    try:
        assert earlier() is not None
        assert [replayed() for _ in range(4)] == [7] * 4
    finally:
        gc.enable()
    assert found == [True]
