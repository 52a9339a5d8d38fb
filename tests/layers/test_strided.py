"""Convolutions of few channels with a stride, done without one, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from caffe_dns.layers import convolution
from caffe_dns.layers.base import Context
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.strided import StridedConvolution
from tests.layers.harness import draw, make_layer, run

CASES = [
    (StridedConvolution(3, (11, 11), 4, (2, 2)), (31, 35)),
    (StridedConvolution(3, (7, 7), 2, (3, 3)), (14, 15)),
    (StridedConvolution(1, (3, 5), 3, (0, 1)), (11, 9)),
    (StridedConvolution(4, (2, 2), 2, (0, 0)), (5, 4)),
    (StridedConvolution(2, (5, 4), 2, (4, 0)), (6, 5)),
]


@pytest.mark.parametrize(("strided", "image"), CASES)
def test_the_same_as_pytorch(strided: StridedConvolution, image: tuple[int, int]) -> None:
    images = draw(2, strided.channels, *image).requires_grad_()
    weight = draw(5, strided.channels, *strided.kernel, seed=2).requires_grad_()
    assert strided.pays
    found = strided.convolve(images, weight)
    wanted = F.conv2d(images, weight, None, strided.stride, strided.pad)
    torch.testing.assert_close(found, wanted)
    upstream = draw(*wanted.shape, seed=3)
    for got, want in zip(
        torch.autograd.grad(found, (images, weight), upstream),
        torch.autograd.grad(wanted, (images, weight), upstream),
        strict=True,
    ):
        torch.testing.assert_close(got, want)
    folded = strided.fold_images(images, images.dtype)
    assert folded.shape[1] % 8 == 0
    assert folded.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("strided", "image"), CASES)
def test_images_that_do_not_learn(strided: StridedConvolution, image: tuple[int, int]) -> None:
    """The weight has the same gradient, and what is kept for it are the images as they were."""
    images = draw(2, strided.channels, *image)
    weight = draw(5, strided.channels, *strided.kernel, seed=2).requires_grad_()
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = strided.convolve(images, weight)
    wanted = F.conv2d(images, weight, None, strided.stride, strided.pad)
    torch.testing.assert_close(found, wanted)
    upstream = draw(*wanted.shape, seed=3)
    (got,), (want,) = (torch.autograd.grad(top, weight, upstream) for top in (found, wanted))
    torch.testing.assert_close(got, want)
    assert {tensor.data_ptr() for tensor in kept if len(tensor) == 2} == {images.data_ptr()}


def test_small_folded_images_are_kept() -> None:
    """In half precision, squares of sixteen pixels take half of what the images take."""
    strided = StridedConvolution(3, (11, 11), 4, (2, 2))
    images = draw(2, 3, 63, 63).float()
    weight = draw(5, 3, 11, 11, seed=2).bfloat16().requires_grad_()
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        top = strided.convolve(images, weight)
    assert (2, 48, 17, 17) in kept and (2, 3, 63, 63) not in kept
    upstream = draw(*top.shape, seed=3).bfloat16()
    (got,) = torch.autograd.grad(top, weight, upstream)
    exact = weight.detach().double().requires_grad_()
    wanted = F.conv2d(images.bfloat16().double(), exact, None, 4, 2)
    (want,) = torch.autograd.grad(wanted, exact, upstream.double())
    torch.testing.assert_close(got.double(), want, rtol=0.02, atol=0.02 * float(want.abs().max()))


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ("num_output: 4 kernel_size: 3 stride: 2 pad: 1", True),
        ("num_output: 4 kernel_size: 3", False),
        ("num_output: 4 kernel_size: 3 stride_h: 2 stride_w: 1", False),
        ("num_output: 4 kernel_size: 1 stride: 2", False),
        ("num_output: 4 kernel_size: 3 stride: 2 dilation: 2", False),
    ],
)
def test_the_layer_uses_it(settings: str, used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"type: 'Convolution' convolution_param {{ {settings} weight_filler {{ type: 'xavier' }}"
    text += " bias_filler { type: 'uniform' } }"
    monkeypatch.setattr(convolution, "LARGE_CONVOLUTION", 0)
    results = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(convolution, "MATRIX_DEVICES", devices)
        layer = make_layer(text, (2, 3, 9, 8), context=Context(surgery=False)).double()
        assert isinstance(layer, BaseConvolution)
        assert (layer.strided is not None) == (used and bool(devices))
        results.append(run(layer, draw(2, 3, 9, 8))[0])
    torch.testing.assert_close(*results)
