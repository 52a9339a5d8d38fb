"""Gradients of weights of convolutions in Triton against PyTorch in float64, or interpreted."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from caffe_dns import kernels, layers
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.weight_gradients import Convolved, FewChannels
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
convolution = import_module("caffe_dns.kernels.convolution")

FORMATS = [torch.contiguous_format, torch.channels_last]


def draw(*shape: int, seed: int, memory_format: torch.memory_format) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE).contiguous(memory_format=memory_format)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "pad"),
    [
        (1, 5, (9, 8), (5, 3), (0, 0)),
        (5, 18, (6, 7), (3, 3), (1, 2)),
        (70, 3, (3, 4), (1, 2), (0, 1)),
    ],
)
def test_against_float64(
    channels: int,
    outputs: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    pad: tuple[int, int],
    memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x = draw(3, channels, *size, seed=1, memory_format=memory_format)
    w = draw(outputs, channels, *kernel, seed=2, memory_format=memory_format)
    shape = torch.conv2d(x, w, padding=pad).shape
    check(draw(*shape, seed=3, memory_format=memory_format), x, w, pad)


def test_a_column_that_was_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Permute hands on counts as contiguous, whatever the stride of its one column."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x = draw(2, 3, 1, 6, seed=1, memory_format=torch.contiguous_format).transpose(2, 3)
    w = draw(5, 3, 3, 1, seed=2, memory_format=torch.contiguous_format)
    assert x.stride(3) == 6
    check(draw(2, 5, 4, 1, seed=3, memory_format=torch.contiguous_format), x, w, (0, 0))


def check(gradient: Tensor, x: Tensor, w: Tensor, pad: tuple[int, int]) -> None:
    assert convolution.fits(x, gradient)
    found = convolution.weight_gradient(gradient, x, w, pad)
    exact = torch.ops.aten.convolution_backward(
        gradient.double(),
        x.double(),
        w.double(),
        None,
        [1, 1],
        list(pad),
        [1, 1],
        False,
        [0, 0],
        1,
        [False, True, False],
    )
    tolerance = 1e-5 if DEVICE == "cpu" else 2**-9  # a factor has 11 digits in TF32
    assert found.shape == w.shape
    assert float((found.double() - exact[1]).abs().max() / exact[1].abs().max()) < tolerance


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 3, 4, 5)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not convolution.fits(x)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert convolution.fits(x)
    assert not convolution.fits(x.transpose(2, 3))
    assert not convolution.fits(x[:, :2])
    assert not convolution.fits(x, x.double())


@pytest.mark.parametrize(
    ("settings", "is_one"),
    [
        ("num_output: 5 kernel_h: 3 kernel_w: 2 pad_h: 1", True),
        ("num_output: 5 kernel_size: 3 stride: 2", False),
        ("num_output: 5 kernel_size: 2 dilation: 2", False),
        ("num_output: 8 kernel_size: 2 group: 4", False),
        ("num_output: 8 kernel_size: 2", False),
        ("num_output: 65 kernel_size: 2", False),
    ],
)
def test_a_layer(settings: str, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.convolution, "MATRIX_DEVICES", ("cpu",))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    text = f"convolution_param {{ {settings} weight_filler {{ type: 'xavier' }} }}"
    net = make_net(input_layer(data=(2, 8, 6, 7)) + layer("c", "Convolution", "data", "z", text))
    conv = net.layer("c")
    assert isinstance(conv, BaseConvolution) and conv.convolved is not None
    assert isinstance(conv.convolved, FewChannels) == is_one
    if not is_one:
        return
    plain = Convolved(conv.stride, conv.pad, conv.dilation, conv.group)
    x, w = (torch.randn(shape) for shape in ((2, 8, 6, 7), conv.blobs[0].shape))
    gradient = torch.randn(net.blob_shapes["z"])
    wanted = plain.weight_gradient(gradient, x, w)
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    called = 0
    kernel = convolution.weight_gradient

    def counted(*blobs: Any) -> Tensor:
        nonlocal called
        called += 1
        result: Tensor = kernel(*blobs)
        return result

    monkeypatch.setattr(convolution, "weight_gradient", counted)
    found = conv.convolved.weight_gradient(*(blob.to(DEVICE) for blob in (gradient, x, w)))
    error = float((found.cpu() - wanted).abs().max() / wanted.abs().max())
    assert error < (1e-5 if DEVICE == "cpu" else 2**-9)
    assert called == 1
