"""The kernel that divides strengths, against numpy; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import numpy as np
import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
kernel_module = import_module("caffe_dns.kernels.contest")
BLOCK = kernel_module.BLOCK


def test_against_numpy() -> None:
    generator = torch.Generator().manual_seed(3)
    sizes = [BLOCK + 1, 15, 1, 2 * BLOCK, 7]
    values = torch.rand(sum(sizes), generator=generator)
    values[5] = 0.25
    # All kept, all pruned and all contested are among them.
    low = torch.tensor([0.25, 0.5, 0.0, 0.1, 2.0], dtype=torch.float64)
    high = torch.tensor([0.75, 0.5, 0.0, 0.9, 3.0], dtype=torch.float64)
    scales = torch.tensor([0.5, 1.0, 3.0, 0.7, 1.0], dtype=torch.float64)
    kernel = kernel_module.ContestKernel(values.to(DEVICE).split(sizes))
    given = (tensor.to(DEVICE) for tensor in (values, low, high, scales))
    contested, squares, below = (result.cpu().numpy() for result in kernel.run(*given))
    assert squares.dtype == np.float64
    places = np.split(np.arange(len(values)), np.cumsum(sizes)[:-1])
    for number, place in enumerate(places):
        own = values.numpy()[place]
        least, most = np.float32(low[number]), np.float32(high[number])
        assert np.array_equal(contested[place], (own >= least) & (own < most))
        kept = own[own >= most].astype(np.float64) / float(scales[number])
        np.testing.assert_allclose(squares[number], np.square(kept).sum(), rtol=1e-6)
        pruned = own[own < least]
        assert below[number] == (pruned.max() if pruned.size else -1)
