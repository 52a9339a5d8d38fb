"""Convolutions by 1x1 that add up their tops, against PyTorch in float64; interpreted on a CPU."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.layers import summed_convolution
from caffe_dns.layers.base import Context
from caffe_dns.layers.products import Convolved
from caffe_dns.net import Net, fusion
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
pointwise = import_module("caffe_dns.kernels.pointwise")

#: Of the product. On Tensor Cores, a factor has 11 digits in TF32.
TOLERANCE = 1e-6 if DEVICE == "cpu" else 2**-9
#: Batch, channels of bottom and top, image: less than a tile of rows; several, the last in part.
SHAPES = [(2, 32, 64, (3, 5)), (3, 64, 128, (9, 10)), (5, 96, 192, (8, 7)), (1, 16, 64, (1, 2))]


@pytest.fixture(autouse=True)
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def draw(*shape: int, seed: int, mean: float = 0.0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean
    return values.to(DEVICE).contiguous(memory_format=torch.channels_last)


def check(found: Tensor | None, exact: Tensor | None) -> None:
    assert found is not None and exact is not None
    error = (found.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max()
    assert float(error) < TOLERANCE


def check_sums(top: Tensor, found: Any) -> None:
    """Mean and variance of the top as it was written, exact to 1e-6 of a deviation."""
    rows = top.numel() // top.shape[1]
    total, squares = found.sums.double().sum(0)
    distance = total / rows
    exact = top.detach().double()
    mean, variance = exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)
    assert float(((found.pivot + distance - mean) / variance.sqrt()).abs().max()) < 1e-6
    torch.testing.assert_close(squares / rows - distance**2, variance, rtol=2e-6, atol=0)


@pytest.mark.parametrize(("num", "channels", "outputs", "size"), SHAPES)
def test_against_float64(num: int, channels: int, outputs: int, size: tuple[int, int]) -> None:
    x, w = draw(num, channels, *size, seed=1), draw(outputs, channels, 1, 1, seed=2)
    assert pointwise.fits(x, outputs)
    values = [x.requires_grad_(), w.requires_grad_()]
    exact = [value.detach().double().requires_grad_() for value in values]
    gradients = Convolved((1, 1), (0, 0), (1, 1), 1).gradients
    top, pivot, sums = pointwise.SummedProduct.apply(*values, gradients)
    wanted = F.conv2d(exact[0], exact[1])
    upstream = draw(*wanted.shape, seed=3)
    assert top.shape == wanted.shape
    assert top.is_contiguous(memory_format=torch.channels_last)
    check_sums(top, pointwise.Sums(pivot, sums))
    torch.autograd.backward(top, upstream)
    wanted.backward(upstream.double())
    check(top, wanted)
    for got, want in zip(values, exact, strict=True):
        check(got.grad, want.grad)


@pytest.mark.parametrize("mean", [1e3, -30.0])
def test_a_large_mean_costs_no_digits(mean: float) -> None:
    """All tops of a channel are about the same."""
    x = draw(4, 32, 8, 9, seed=1)
    x[:, 0] = mean
    w = draw(64, 32, 1, 1, seed=2)
    top, found = pointwise.product(x, w)
    rows, distance = top.numel() // 64, found.sums.double().sum(0)[0] / (top.numel() // 64)
    exact = top.double()
    deviation = exact.std((0, 2, 3))
    # float32 itself rounds such numbers to so many deviations.
    limit = 1e-6 + 2**-24 * float((exact.abs().amax((0, 2, 3)) / deviation).max())
    error = (found.pivot + distance - exact.mean((0, 2, 3))) / deviation
    assert float(error.abs().max()) < limit
    variance = found.sums.double().sum(0)[1] / rows - distance**2
    torch.testing.assert_close(
        variance.sqrt(), exact.std((0, 2, 3), correction=0), rtol=2 * limit, atol=0
    )


@pytest.mark.parametrize(
    ("shape", "outputs", "dtype", "last"),
    [
        ((2, 32, 3, 3), 60, torch.float32, True),
        ((2, 30, 3, 3), 64, torch.float32, True),
        ((2, 32, 3, 3), 64, torch.float32, False),
        ((2, 24, 3, 3), 64, torch.bfloat16, True),
        ((2, 1024, 3, 3), 128, torch.float32, True),
        ((2, 32, 3, 3), 64, torch.float64, True),
        ((0, 32, 3, 3), 64, torch.float32, True),
    ],
)
def test_what_is_left_to_cudnn(
    shape: tuple[int, ...], outputs: int, dtype: torch.dtype, last: bool
) -> None:
    memory_format = torch.channels_last if last else torch.contiguous_format
    x = torch.zeros(shape, dtype=dtype).contiguous(memory_format=memory_format)
    assert not pointwise.fits(x, outputs)


def test_exact_float32_is_left_to_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(2, 32, 3, 3, seed=1)
    assert pointwise.fits(x, 64)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not pointwise.fits(x, 64)


CONV = "convolution_param { num_output: 64 kernel_size: 1 weight_filler { type: 'xavier' } %s }"
DATA = (2, 32, 3, 4)


def net_of(settings: str, *, adds: bool) -> Net:
    text = input_layer(data=DATA, other=(2, 64, 3, 4))
    text += layer("conv", "Convolution", "data", "a", CONV % settings)
    text += layer("bn", "BatchNorm", "a", "a")
    text += layer("scale", "Scale", "a", "a", "scale_param { bias_term: true }")
    if adds:
        text += "layer { name: 'sum' type: 'Eltwise' bottom: 'other' bottom: 'a' top: 's' }"
    blob = "s" if adds else "a"
    text += layer("relu", "ReLU", blob, blob) + layer("tanh", "TanH", blob, "b")
    text += "layer { name: 'loss' type: 'Reduction' bottom: 'b' top: 'loss' loss_weight: 1 "
    text += "reduction_param { operation: SUMSQ } }"
    return make_net(text, context=Context(device=torch.device(DEVICE)))


@pytest.mark.parametrize(
    ("settings", "is_product", "adds"),
    [
        ("", True, False),
        ("", True, True),
        ("bias_term: false", True, False),
        ("bias_term: false", True, True),
        ("stride: 2", False, False),
        ("pad: 1", False, False),
        ("group: 2", False, True),
    ],
)
def test_a_net(
    settings: str, is_product: bool, adds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss, gradients and statistics are those of the same layers without the kernel.

    Images and weights have so few digits that TF32 rounds none, and their products' sums are exact.
    """
    monkeypatch.setattr(fusion, "DEVICES", (DEVICE,))
    monkeypatch.setattr(kernels, "suit", lambda blob: True)
    made: list[Tensor] = []
    make = pointwise.product

    def noted(x: Tensor, w: Tensor) -> Any:
        made.append(x)
        return make(x, w)

    monkeypatch.setattr(pointwise, "product", noted)
    found = []
    for least in (0, 1 << 60):
        monkeypatch.setattr(summed_convolution, "LARGE", least)
        net = net_of(settings, adds=adds)
        weight = net.params["conv"][0].detach()
        weight.copy_((1024 * weight).round() / 1024)
        data = ((64 * draw(*DATA, seed=1)).round() / 64).requires_grad_()
        other = draw(2, 64, 3, 4, seed=2)
        loss = net.loss(net.compute({"data": data, "other": other}, inner=False))
        loss.backward()
        learned = [param.tensor for param in net.learnable_params]
        gradients = [each.grad for each in (data, *learned)]
        found.append([loss, *(each for each in gradients if each is not None), *learned])
        found[-1] += net.params["bn"]
    assert len(made) == is_product
    for got, want in zip(*found, strict=True):
        limit = TOLERANCE * float(want.detach().abs().max())
        torch.testing.assert_close(got, want, rtol=1e-4, atol=max(limit, 1e-5))
