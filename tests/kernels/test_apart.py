"""The kernel that puts weights apart and together again; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
kernel_module = import_module("caffe_dns.kernels.apart")
BLOCK = kernel_module.BLOCK


@pytest.mark.parametrize("aligned", [True, False])
def test_against_the_product(aligned: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(BLOCK + 1,), (3, 5), (2, 3, 4, 4), (1,), (2 * BLOCK,)]
    weights = [torch.randn(shape, generator=generator).to(DEVICE) for shape in shapes]
    weights[2] = weights[2].contiguous(memory_format=torch.channels_last)
    if not aligned:
        weights[4] = torch.randn(2 * BLOCK + 1, generator=generator).to(DEVICE)[1:]
    masks = [(torch.randn_like(weight) > 0).float() for weight in weights]
    pruned = [torch.full_like(weight, 7.0) for weight in weights]
    whole = [weight.clone() for weight in weights]
    kernel = kernel_module.ApartKernel(weights, masks, pruned)
    masks[0].neg_().add_(1)
    kernel.take_masks()
    kernel.split()
    for before, kept, mask, rest in zip(whole, weights, masks, pruned, strict=True):
        assert torch.equal(kept, torch.where(mask.bool(), before, 0))
        assert torch.equal(rest, torch.where(mask.bool(), 0, before))
    kernel.merge()
    for before, weight in zip(whole, weights, strict=True):
        assert torch.equal(before, weight)
