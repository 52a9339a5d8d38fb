"""A convolution with bias and ReLU as one against its layers; interpreted where there is no GPU.

There, what cuDNN would do is PyTorch's for a CPU.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels, layers
from caffe_dns.device import trial
from caffe_dns.device.trial import Trials
from caffe_dns.layers import rectified_convolution
from caffe_dns.layers.base import Context
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.products import Product
from caffe_dns.layers.weight_gradients import DeferredWeightGradients, Then
from caffe_dns.net import Net, fusion
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
first_convolution = import_module("caffe_dns.kernels.first_convolution")

Pair = tuple[int, int]
#: A factor has 11 digits in TF32.
TOLERANCE = 2**-9
#: From exact sums of rounded factors; a result has 8 digits in bfloat16.
SUMS = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
TYPES = [
    torch.float32,
    # The interpreter multiplies no matrices of bfloat16.
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")),
]


@pytest.fixture(autouse=True)
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE, dtype)


def as_factors(values: Tensor) -> Tensor:
    """What units multiply: the nearest numbers with 11 digits, halves away from zero; bfloat16."""
    if values.dtype == torch.bfloat16:
        return values.double()
    digits, exponents = torch.frexp(values.double())
    rounded = torch.trunc(digits * 2**11 + torch.sign(digits) / 2) / 2**11
    return torch.ldexp(rounded, exponents)


def check(found: Tensor, exact: Tensor, tolerance: float = TOLERANCE) -> None:
    assert found.shape == exact.shape
    error = (found.detach().double() - exact.detach()).abs().max()
    assert float(error / exact.detach().abs().max()) < tolerance


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("channels", "outputs", "size", "kernel", "pad"),
    [
        (3, 20, (9, 8), (3, 3), (1, 1)),
        (1, 5, (6, 7), (5, 3), (0, 2)),
        (4, 33, (5, 9), (1, 2), (0, 0)),
    ],
)
def test_first_convolution(
    channels: int,
    outputs: int,
    size: Pair,
    kernel: Pair,
    pad: Pair,
    channels_last: bool,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with the images in another type than the weight."""
    monkeypatch.setattr(first_convolution, "PROGRAMS", 2)
    images = draw(3, channels, *size, seed=1)
    if channels_last:
        images = images.to(dtype).contiguous(memory_format=torch.channels_last)
    w = draw(outputs, channels, *kernel, seed=2, dtype=dtype)
    w = w.contiguous(memory_format=torch.channels_last).requires_grad_()
    b = draw(outputs, seed=3, dtype=dtype).requires_grad_()
    assert first_convolution.fits(images, w, pad)
    found = first_convolution.FirstConvolution.apply(images, w, b, pad)
    assert found.dtype == dtype and found.is_contiguous(memory_format=torch.channels_last)
    factors = as_factors(images.to(dtype)), as_factors(w.detach()).requires_grad_()
    exact = F.conv2d(*factors, b.detach().double(), padding=pad)
    check(found, exact.relu(), SUMS[dtype])
    # As a part of a larger blob, from which a Concat hands down.
    larger = draw(3, outputs + 9, *found.shape[2:], seed=4, dtype=dtype)
    upstream = larger.contiguous(memory_format=torch.channels_last)[:, 4 : 4 + outputs]
    found.backward(upstream)
    # By the top that was found: where it is 0 but for rounding, nothing goes down.
    passed = upstream * (found.detach() > 0)
    exact.backward(as_factors(passed))
    assert w.grad is not None and b.grad is not None and factors[1].grad is not None
    check(w.grad, factors[1].grad, SUMS[dtype])
    check(b.grad, passed.double().sum((0, 2, 3)), SUMS[dtype])
    assert w.grad.dtype == b.grad.dtype == dtype


def test_first_convolution_passes_nan_on() -> None:
    images, w = draw(1, 1, 4, 4, seed=1), draw(2, 1, 1, 1, seed=2)
    # What a GPU makes, too, whose digits are all ones.
    images.view(torch.int32)[0, 0, 1, 2] = 0x7FFFFFFF
    top = first_convolution.FirstConvolution.apply(images, w, draw(2, seed=3), (0, 0))
    assert top.isnan().nonzero().tolist() == [[0, 0, 1, 2], [0, 1, 1, 2]]


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    images, w = draw(2, 3, 5, 5, seed=1), draw(8, 3, 3, 3, seed=2)
    last = w.contiguous(memory_format=torch.channels_last)
    assert first_convolution.fits(images, last, (1, 1))
    assert not first_convolution.fits(images, w, (1, 1))
    assert not first_convolution.fits(images.double(), last, (1, 1))
    assert not first_convolution.fits(images, last.double(), (1, 1))
    many = draw(129, 3, 1, 1, seed=2)
    assert not first_convolution.fits(images, many, (0, 0))
    assert not first_convolution.fits(draw(2, 17, 5, 5, seed=1), draw(8, 17, 2, 2, seed=2), (0, 0))
    monkeypatch.setattr(first_convolution, "LARGEST", 2 * 8 * 49 - 1)
    assert not first_convolution.fits(images, last, (1, 1))
    monkeypatch.setattr(first_convolution, "LARGEST", 2 * 8 * 49)
    assert first_convolution.fits(images, last, (1, 1))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not first_convolution.fits(images, last, (1, 1))


class Deferred(DeferredWeightGradients):
    """A second stream on a machine without any."""

    with_biases = False

    def takes(self, weight: Tensor, work: int) -> bool:
        return True

    def compute(self, product: Product, weight: Tensor, *inputs: Tensor) -> Then:
        self._bring(product, weight, *inputs)
        return None


CONVOLUTION = "convolution_param {{ num_output: {} weight_filler {{ type: 'xavier' }} {} }}"


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """Two convolutions, each with a bias and a ReLU, as on a GPU."""
    monkeypatch.setattr(layers.convolution, "MATRIX_DEVICES", (DEVICE,))
    # Few channels in a small layer are another kernel's.
    monkeypatch.setattr(layers.convolution, "LARGE", 0)
    monkeypatch.setattr(layers.convolution, "LARGE_CONVOLUTION", 0)
    monkeypatch.setattr(rectified_convolution, "LARGE", 0)
    monkeypatch.setattr(fusion, "DEVICES", (DEVICE,))
    bias = "bias_filler { type: 'gaussian' std: 1 } kernel_size: 3"
    text = input_layer(data=(2, 3, 8, 6))
    text += layer("c", "Convolution", "data", "c", CONVOLUTION.format(8, f"{bias} pad: 1"))
    text += layer("r", "ReLU", "c", "c")
    text += layer("d", "Convolution", "c", "d", CONVOLUTION.format(6, f"{bias} stride: 2 group: 2"))
    text += layer("s", "ReLU", "d", "d")
    text += "layer { name: 'loss' type: 'Reduction' bottom: 'd' top: 'l' loss_weight: 1 "
    text += "reduction_param { operation: SUMSQ } }"
    net = make_net(text, context=Context(device=torch.device(DEVICE)))
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(draw_quarters(*parameter.shape, seed=seed))
    return net


def draw_quarters(*shape: int, seed: int) -> Tensor:
    """Numbers whose products and sums units have exactly: none is rectified for their rounding."""
    values = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)) / 4
    return values.to(DEVICE)


def results(net: Net, data: Tensor) -> list[Tensor]:
    """The net's loss, and the gradients of its parameters."""
    net.zero_grad()
    loss = net.loss(net.compute({"data": data}, inner=False))
    loss.backward()
    if net.context.deferred_gradients is not None:
        net.context.deferred_gradients.join()
    gradients = [parameter.grad for parameter in net.parameters()]
    return [loss.detach(), *(blob for blob in gradients if blob is not None)]


def exact_results(net: Net, data: Tensor) -> list[Tensor]:
    """The same by hand in float64."""
    c, c_bias, d, d_bias = (p.detach().double().requires_grad_() for p in net.parameters())
    middle = F.conv2d(data.double(), c, c_bias, padding=1).relu()
    loss = F.conv2d(middle, d, d_bias, stride=2, groups=2).relu().square().sum()
    return [loss.detach(), *torch.autograd.grad(loss, (c, c_bias, d, d_bias))]


def by_hand(
    x: Tensor, w: Tensor, bias: Tensor, stride: Any, pad: Any, dilation: Any, group: int
) -> Tensor:
    """What cuDNN does, on a CPU."""
    return F.conv2d(x, w, bias, stride, pad, dilation, group).relu()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The tops that cuDNN made with bias and ReLU, which is fastest here, by their shapes."""
    made: list[torch.Size] = []
    real = torch.cudnn_convolution_relu if DEVICE == "cuda" else by_hand

    def counted(*given: Any) -> Tensor:
        top: Tensor = real(*given)
        made.append(top.shape)
        return top

    monkeypatch.setattr(torch, "cudnn_convolution_relu", counted)
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    monkeypatch.setattr(rectified_convolution, "_trials", Trials())
    monkeypatch.setattr(trial, "_try", lambda *ways: True)
    if DEVICE == "cpu":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return made


@pytest.mark.parametrize("deferred", [None, Deferred()])
def test_layers(net: Net, tried: list[torch.Size], deferred: Deferred | None) -> None:
    """The first by a kernel of ours, the second by cuDNN; both where a gradient goes further."""
    data = draw_quarters(2, 3, 8, 6, seed=1)
    net.context.deferred_gradients = deferred
    for own, other in zip(results(net, data), exact_results(net, data), strict=True):
        check(own, other)
    assert tried == [(2, 6, 3, 2)]
    below = data.clone().requires_grad_()
    for own, other in zip(results(net, below), exact_results(net, data), strict=True):
        check(own, other)
    assert tried == [(2, 6, 3, 2), (2, 8, 8, 6), (2, 6, 3, 2)] and below.grad is not None


@pytest.mark.parametrize("where", ["no trials", "slower"])
def test_each_by_itself(
    net: Net, tried: list[torch.Size], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "no trials":
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    else:
        monkeypatch.setattr(trial, "_try", lambda *ways: False)
    data = draw_quarters(2, 3, 8, 6, seed=1)
    for own, other in zip(results(net, data), exact_results(net, data), strict=True):
        check(own, other)
    assert not tried


def test_nothing_more_is_kept(net: Net, tried: list[torch.Size]) -> None:
    """Bottoms, masked weights, and the tops once."""
    kept: list[Tensor] = []

    def keep(blob: Tensor) -> Tensor:
        kept.append(blob)
        return blob

    data = draw_quarters(2, 3, 8, 6, seed=1)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda blob: blob):
        net.compute({"data": data}, inner=False)
    own = {blob.data_ptr() for blob in (data, *net.parameters())}
    others = {blob.data_ptr(): blob.numel() for blob in kept if blob.data_ptr() not in own}
    assert sorted(others.values()) == [2 * 6 * 3 * 2, 216, 216, 2 * 8 * 8 * 6] and tried


def test_one_try_for_each_shape(net: Net, tried: list[torch.Size]) -> None:
    for num in (2, 2, 3):
        with torch.no_grad():
            net.compute({"data": draw_quarters(num, 3, 8, 6, seed=1)}, inner=False)
    assert [case[1][0] for case in rectified_convolution._trials.found] == [2, 3]  # type: ignore[index]


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_cudnn(net: Net) -> None:
    """What memory it gets, which may be of anything, does not get into the top."""
    conv = net.layer("d")
    assert isinstance(conv, BaseConvolution) and conv.convolved is not None
    x = draw(4, 8, 30, 30, seed=1).contiguous(memory_format=torch.channels_last)
    w, b = (parameter.detach() for parameter in conv.parameters() if parameter.requires_grad)
    plain = conv.convolved
    product = rectified_convolution.Rectifying(
        plain.stride, plain.pad, plain.dilation, plain.group, b
    )
    shape = product.top(x, w, None).shape
    anything = torch.full(shape, float("nan"), device=DEVICE)
    del anything
    check(product.top(x, w, None), by_hand(x.double(), w.double(), b.double(), 2, 0, 1, 2))
