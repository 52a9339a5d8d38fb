"""The kernel that renews masks by thresholds, against torch; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
kernel_module = import_module("caffe_dns.kernels.cut")
BLOCK = kernel_module.BLOCK


def test_against_torch() -> None:
    generator = torch.Generator().manual_seed(3)
    layers = [0, 0, 1, 2, 3]  # the first has two masks
    shapes = [(BLOCK + 1,), (15,), (2, 3, 4, 4), (1,), (2 * BLOCK,)]
    before = [(torch.rand(shape, generator=generator) < 0.5).float() for shape in shapes]
    strengths = [torch.rand(shape, generator=generator) for shape in shapes]
    before[2], strengths[2] = (
        tensor.contiguous(memory_format=torch.channels_last) for tensor in (before[2], strengths[2])
    )
    strengths[4][7] = 0.25  # equal is not stronger
    thresholds = torch.tensor([0.5, -1.0, 2.0, 0.25])
    masks = [mask.clone().to(DEVICE) for mask in before]
    counters = torch.full((4,), 5, device=DEVICE)
    rows = [
        kernel_module.CutMask(mask, counters[layer], layer)
        for mask, layer in zip(masks, layers, strict=True)
    ]
    in_memory = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in strengths]
    kernel = kernel_module.CutKernel(rows)
    kernel.run(torch.cat(in_memory).to(DEVICE), thresholds.to(DEVICE))
    came_back = [5] * 4
    for mask, old, strength, layer in zip(masks, before, strengths, layers, strict=True):
        assert torch.equal(mask.cpu(), (strength > thresholds[layer]).float())
        came_back[layer] += int((mask.cpu() > old).sum())
    assert counters.tolist() == came_back
