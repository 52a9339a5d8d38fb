"""Images with their channels innermost as rows of planes, in Triton against PyTorch."""

from __future__ import annotations

import os
from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch

from caffe_dns import kernels
from tests.layers.harness import make_layer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
flatten = import_module("caffe_dns.kernels.flatten")
Flattened = flatten.Flattened


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 70, 5, 7), (2, 130, 9, 9), (1, 5, 1, 2)])
def test_the_same_bits_as_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = Flattened.apply(images)
    assert torch.equal(found, images.flatten(1))
    (got,) = torch.autograd.grad(found, images, torch.ones_like(found) * found)
    assert torch.equal(got, images) and got.stride() == images.stride()


@pytest.mark.parametrize(("axis", "times"), [(1, 1), (2, 0)])
def test_inner_products(axis: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all numbers of an image, they take them in the order of planes by the kernel."""
    shape = (3, 4, 2, 5)
    calls: list[Any] = []
    settings = (
        f"inner_product_param {{ num_output: 6 axis: {axis} weight_filler {{ type: 'msra' }} }}"
    )
    made = make_layer(f"type: 'InnerProduct' {settings}", shape).to(DEVICE)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    (wanted,) = torch.autograd.grad(made(images.requires_grad_()).square().sum(), images)
    monkeypatch.setattr(kernels, "suit", lambda blob: True)
    monkeypatch.setattr(flatten, "_launch", partial(noted, flatten._launch, calls))
    last = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    (found,) = torch.autograd.grad(made(last).square().sum(), last)
    assert len(calls) == 2 * times
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def noted(function: Any, calls: list[Any], *given: Any, **named: Any) -> None:
    calls.append(given)
    function(*given, **named)
