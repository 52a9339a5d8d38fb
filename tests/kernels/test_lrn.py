"""LRN in Triton against its formula in float64; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
lrn = import_module("caffe_dns.kernels.lrn")
NormalizedAcross = lrn.NormalizedAcross


def formula(x: Tensor, size: int, share: float, beta: float, k: float) -> Tensor:
    reach, squares = size // 2, x.square()
    padded = F.pad(squares, (0, 0, 0, 0, reach, reach))
    sums = torch.stack([padded[:, i : i + x.shape[1]] for i in range(size)]).sum(0)
    return x * (k + share * sums) ** -beta


@pytest.mark.parametrize(("shape", "size"), [((1, 3, 23, 23), 3), ((2, 6, 1, 2), 5)])
def test_planes_against_float64(shape: tuple[int, ...], size: int) -> None:
    compare(shape, size, last=False)


@pytest.mark.parametrize("exchanges", [True, False])
@pytest.mark.parametrize(
    ("shape", "size"), [((2, 70, 2, 2), 5), ((1, 3, 14, 13), 3), ((1, 64, 3, 2), 7)]
)
def test_channels_last_against_float64(
    shape: tuple[int, ...], size: int, exchanges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one tile, in which neighbours are exchanged, or as planes are."""
    if not exchanges:
        monkeypatch.setattr(lrn, "LARGEST_ROW", 0)
    compare(shape, size, last=True)


def compare(shape: tuple[int, ...], size: int, *, last: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    x, upstream = (torch.randn(shape, generator=generator).to(DEVICE) for _ in range(2))
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
        upstream = upstream.contiguous(memory_format=torch.channels_last)
    settings = (size, 0.3, 0.75, 2.0)
    x.requires_grad_()
    exact = x.detach().double().requires_grad_()
    wanted, found = formula(exact, *settings), NormalizedAcross.apply(x, *settings)
    assert found.stride() == x.stride()
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
    (expected,) = torch.autograd.grad(wanted, exact, upstream.double())
    (gradient,) = torch.autograd.grad(found, x, upstream)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-6, atol=2e-6)


def test_bfloat16() -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn((2, 6, 1, 2), generator=generator).to(DEVICE, torch.bfloat16)
    settings = (5, 1e-4 / 5, 0.75, 1.0)
    x.requires_grad_()
    wanted = formula(x.detach().double(), *settings)
    found = NormalizedAcross.apply(x, *settings)
    assert found.dtype == torch.bfloat16
    # The interpreter does not round to the nearest.
    assert ((found.double() - wanted).abs() <= 2**-7 * wanted.abs()).all()


@pytest.mark.parametrize("pixels", [1, 2])
def test_nothing_comes_from_channels_that_are_not_there(pixels: int) -> None:
    """With k 0, their powers are infinite."""
    x = torch.full((1, 3, pixels, 1), 2.0, device=DEVICE, requires_grad=True)
    exact = x.detach().double().requires_grad_()
    settings = (3, 0.5, 0.75, 0.0)
    NormalizedAcross.apply(x, *settings).sum().backward()
    formula(exact, *settings).sum().backward()
    assert x.grad is not None and exact.grad is not None
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=1e-6, atol=1e-6)
