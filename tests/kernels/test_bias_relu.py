"""Bias and ReLU in Triton against PyTorch; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
bias_relu = import_module("caffe_dns.kernels.bias_relu")
channel_statistics = import_module("caffe_dns.kernels.channel_statistics")
BiasedReLU = bias_relu.BiasedReLU


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((7, 5), False),
        ((3, 20, 4, 5), False),
        ((3, 70, 4, 5), True),
        ((2, 3, 40, 41), False),
        ((2, 3, 40, 41), True),
        ((1100, 2), False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_pytorch(shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    # Numbers that bfloat16 has, and whose sums float32 has.
    x = (torch.randint(-16, 16, shape, generator=generator) / 4).to(DEVICE, dtype)
    bias = (torch.randint(-4, 4, shape[1:2], generator=generator) / 4).to(DEVICE, dtype)
    upstream = torch.randint(-4, 4, shape, generator=generator).to(DEVICE, dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    bias.requires_grad_()
    wanted = torch.relu(x + bias.view(-1, *[1] * (len(shape) - 2)))
    found = BiasedReLU.apply(x.clone(), bias)
    assert torch.equal(found, wanted)
    assert found.stride() == x.stride()
    for got, want in zip(
        torch.autograd.grad(found, (x, bias), upstream),
        torch.autograd.grad(wanted.float(), (x, bias), upstream.float()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 0, atol=0)


def test_nan_is_passed_on() -> None:
    x = torch.tensor([[float("nan"), 2.0]], device=DEVICE)
    assert BiasedReLU.apply(x, torch.zeros(2, device=DEVICE)).isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("expanded", [False, True])
def test_a_gradient_among_others(last: bool, expanded: bool) -> None:
    """What comes down from a Concat is a part of a larger blob, and from a mean one number."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-4, 4, (3, 5, 4, 6), generator=generator).float().to(DEVICE)
    larger = torch.randint(-4, 4, (3, 9, 4, 6), generator=generator).float().to(DEVICE)
    if last:
        x, larger = (blob.contiguous(memory_format=torch.channels_last) for blob in (x, larger))
    upstream = larger[:1, 3:8, :1, :1].expand(x.shape) if expanded else larger[:, 3:8]
    bias = torch.zeros(5, device=DEVICE, requires_grad=True)
    inputs = (x.requires_grad_(), bias)
    found = torch.autograd.grad(BiasedReLU.apply(x.clone(), bias), inputs, upstream)
    wanted = torch.autograd.grad(torch.relu(x + bias.view(-1, 1, 1)), inputs, upstream)
    assert all(map(torch.equal, found, wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_top_among_others(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randint(-4, 4, (3, 70, 4, 6), generator=generator).to(DEVICE, dtype)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    bias = torch.randint(-4, 4, (70,), generator=generator).to(DEVICE, dtype).requires_grad_()
    upstream = torch.randint(-4, 4, (3, 70, 4, 6), generator=generator).to(DEVICE, dtype)
    larger = torch.full((3, 90, 4, 6), 7.0, device=DEVICE, dtype=dtype)
    larger = larger.contiguous(memory_format=torch.channels_last)
    wanted = torch.relu(x + bias.view(-1, 1, 1))
    found = BiasedReLU.apply(x, bias, bias_relu.Place(larger, 11))
    assert torch.equal(found, wanted)
    assert torch.equal(larger[:, 11:81], wanted)
    assert larger[:, :11].eq(7).all() and larger[:, 81:].eq(7).all()
    for got, want in zip(
        torch.autograd.grad(found, (x, bias), upstream),
        torch.autograd.grad(wanted.float(), (x, bias), upstream.float()),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-2 if dtype == torch.bfloat16 else 0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("splits", [7, 300, 2 * channel_statistics.MANY + 5])
def test_sums_of_many_splits(splits: int, dtype: torch.dtype) -> None:
    sums = torch.rand(splits, 11, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found = channel_statistics.add_up_splits(sums, dtype)
    assert found.dtype == dtype
    wanted = sums.double().sum(0)
    # Interpreted, the last digit of bfloat16 is cut off, not rounded.
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (2**-7, 0)
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)
