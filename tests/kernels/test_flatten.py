"""Images with their channels innermost as rows of planes, in Triton against PyTorch."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
Flattened = import_module("caffe_dns.kernels.flatten").Flattened


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 70, 5, 7), (2, 130, 9, 9), (1, 5, 1, 2)])
def test_the_same_bits_as_pytorch(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, dtype)
    images = images.contiguous(memory_format=torch.channels_last).requires_grad_()
    found = Flattened.apply(images)
    assert torch.equal(found, images.flatten(1))
    (got,) = torch.autograd.grad(found, images, torch.ones_like(found) * found)
    assert torch.equal(got, images) and got.stride() == images.stride()
