"""Products of few columns in Triton against float64; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers.products import FewOutputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
narrow = import_module("caffe_dns.kernels.narrow")

TOLERANCE = 1e-5 if DEVICE == "cpu" else 2**-9  # a factor has 11 digits in TF32


@pytest.fixture(autouse=True)
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def check(found: Tensor, exact: Tensor) -> None:
    assert found.shape == exact.shape
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < TOLERANCE


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 1, 1), (20, 130, 10), (33, 200, 32)])
def test_against_float64(rows: int, inputs: int, outputs: int, biased: bool) -> None:
    x, w = draw(rows, inputs, seed=1), draw(outputs, inputs, seed=2)
    b = draw(outputs, seed=3) if biased else None
    assert narrow.fits(x, w)
    exact = x.double() @ w.double().t()
    check(narrow.top(x, w, b), exact if b is None else exact + b.double())
    gradient = draw(rows, outputs, seed=4)
    check(narrow.bottom_gradient(gradient, w), gradient.double() @ w.double())


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(3, 4, seed=1)
    assert narrow.fits(x)
    assert not narrow.fits(x.t())
    assert not narrow.fits(x.double())
    assert not narrow.fits(x[None])
    assert not narrow.fits(x, x[:0])
    with monkeypatch.context() as patch:
        patch.setattr(narrow, "LARGEST", x.numel() - 1)
        assert not narrow.fits(x)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    assert not narrow.fits(x)


def test_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its products, which PyTorch computes where the kernel does not fit."""
    x, w, gradient = draw(3, 5, seed=1), draw(4, 5, seed=2), draw(3, 4, seed=3)
    exact = [x.double() @ w.double().t(), gradient.double() @ w.double()]
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    called = []

    def told(*matrices: Tensor) -> bool:
        called.append(all(matrix.is_contiguous() for matrix in matrices))
        return called[-1]

    monkeypatch.setattr(narrow, "fits", told)
    product = FewOutputs(transpose=False)
    check(product.top(x, w, None), exact[0])
    check(product.bottom_gradient(gradient, x, w), exact[1])
    check(product.top(x, w.t().contiguous().t(), None), exact[0])
    assert called == [True, True, False]
    check(FewOutputs(transpose=True).top(x, w.t(), None), exact[0])
    assert len(called) == 3
