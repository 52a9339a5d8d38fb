"""Sum and ReLU in Triton against PyTorch; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
RectifiedSum = import_module("caffe_dns.kernels.sum_relu").RectifiedSum


@pytest.mark.parametrize(
    ("shape", "last"),
    [
        ((7, 5), False),
        ((3, 20, 4, 5), False),
        ((3, 70, 4, 5), True),
        ((2, 3, 40, 41), False),
        ((2, 3, 40, 41), True),
        ((1, 1, 1, 5000), False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_pytorch(shape: tuple[int, ...], last: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    # Numbers that bfloat16 has, and their sums as well.
    first, second, upstream = (
        (torch.randint(-16, 16, shape, generator=generator) / 4).to(DEVICE, dtype) for _ in range(3)
    )
    if last:  # the other keeps its own layout
        first = first.contiguous(memory_format=torch.channels_last)
    first.requires_grad_()
    second.requires_grad_()
    wanted = torch.relu(first + second)
    found = RectifiedSum.apply(first, second)
    assert torch.equal(found, wanted)
    assert found.stride() == first.stride()
    for got, want in zip(
        torch.autograd.grad(found, (first, second), upstream),
        torch.autograd.grad(wanted, (first, second), upstream),
        strict=True,
    ):
        assert torch.equal(got, want)


def test_nan_is_passed_on() -> None:
    first = torch.tensor([[float("nan"), 2.0]], device=DEVICE)
    found = RectifiedSum.apply(first, torch.zeros_like(first))
    assert found.isnan().tolist() == [[True, False]]
