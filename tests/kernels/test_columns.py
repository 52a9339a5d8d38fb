"""Matrices laid out by columns in Triton against PyTorch; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
by_columns = import_module("caffe_dns.kernels.columns").by_columns


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (64, 64), (130, 65), (1, 70), (70, 1)])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_same_numbers_in_the_other_order(shape: tuple[int, int], factor: float) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = by_columns(matrix, factor)
    assert torch.equal(found, matrix * factor)
    assert found.t().is_contiguous()


def test_columns_of_a_wider_matrix() -> None:
    matrix = torch.randn((70, 100), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    part = matrix[:, 20:90]
    assert torch.equal(by_columns(part, 2.0), part * 2)
