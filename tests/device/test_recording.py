"""Recording CUDA graphs."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any, cast

import pytest
import torch

from caffe_dns.device.recording import recording


def test_no_garbage_is_collected_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """To free another graph would end the recording, which here is one of nothing."""
    modes = []

    def graph(graph: object, *, capture_error_mode: str) -> Any:
        modes.append(capture_error_mode)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "graph", graph)
    with recording(cast(torch.cuda.CUDAGraph, None)):
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(RuntimeError), recording(cast(torch.cuda.CUDAGraph, None)):
        raise RuntimeError("cannot be recorded")
    assert gc.isenabled() and modes == ["thread_local"] * 2
