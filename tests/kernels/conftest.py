"""Settings of the tests of kernels."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreted, the time that a kernel takes goes with the number of its programs."""
    if not torch.cuda.is_available():
        layout = pytest.importorskip("caffe_dns.kernels.layout")
        monkeypatch.setattr(layout, "SMALL_TILE", layout.TILE)
