"""Squares of pixels as channels in Triton against PyTorch; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

from caffe_dns.layers.strided import StridedConvolution

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
module = import_module("caffe_dns.kernels.space_to_depth")
space_to_depth, FoldedWeight = module.space_to_depth, module.FoldedWeight

CASES = [
    StridedConvolution(3, (11, 11), 4, (2, 2)),
    StridedConvolution(3, (7, 7), 2, (3, 1)),
    StridedConvolution(2, (5, 4), 2, (4, 0)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("strided", "image"),
    [
        (StridedConvolution(3, (11, 11), 4, (2, 2)), (31, 35)),
        (StridedConvolution(3, (7, 7), 2, (3, 1)), (14, 15)),
        (StridedConvolution(4, (2, 2), 2, (0, 0)), (5, 4)),
    ],
)
def test_the_same_as_pytorch(
    strided: StridedConvolution, image: tuple[int, int], last: bool, dtype: torch.dtype
) -> None:
    images = torch.randn(3, strided.channels, *image, generator=torch.Generator().manual_seed(1))
    # On a CPU, or with a gradient to come, the convolution does it with PyTorch.
    wanted = strided.fold_images(images, dtype)
    images = images.to(DEVICE)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    channels, size = strided.padded_channels, tuple(wanted.shape[2:])
    found = space_to_depth(images, strided.stride, strided.pad, size, channels, dtype)
    # Interpreted, Triton cuts digits off where a GPU rounds.
    torch.testing.assert_close(
        found.cpu(), wanted, rtol=2**-7 if dtype != torch.float32 else 0, atol=0
    )
    assert found.stride() == wanted.stride()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("strided", CASES)
def test_weights_and_their_gradients(strided: StridedConvolution, last: bool) -> None:
    weight = torch.randn(5, strided.channels, *strided.kernel, device=DEVICE)
    if last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    weight.requires_grad_()
    side, blocks, channels = strided.stride, strided.blocks, strided.padded_channels
    found = FoldedWeight.apply(weight, side, blocks, channels)
    wanted = strided.fold_weight(weight.cpu())
    assert torch.equal(found.cpu(), wanted) and found.stride() == wanted.stride()
    upstream = torch.randn(wanted.shape)
    (got,) = torch.autograd.grad(found, weight, upstream.to(DEVICE))
    (want,) = torch.autograd.grad(wanted, weight, upstream)
    assert torch.equal(got, want) and got.stride() == weight.stride()
