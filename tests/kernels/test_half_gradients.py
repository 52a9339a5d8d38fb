"""Gradients from factors in half precision; interpreted where there is no GPU."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device import trial
from caffe_dns.device.trial import Trials
from caffe_dns.layers import convolution, half_precision
from caffe_dns.layers.base import Context
from tests.layers.test_weight_gradients import OnTheSpot
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
half_factors = import_module("caffe_dns.kernels.half_factors")
half_gradients = import_module("caffe_dns.kernels.half_gradients")

Pair = tuple[int, int]
#: Of sums of a thousand products: a GPU's Tensor Cores cut off what they add up in float32.
TOLERANCE = 1e-6 if DEVICE == "cpu" else 1e-5


@pytest.fixture(autouse=True)
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    # The interpreter's time goes with the number of programs.
    monkeypatch.setattr(half_factors, "SHARES", 4)


def draw(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE).contiguous(memory_format=torch.channels_last)


def as_factors(values: Tensor) -> Tensor:
    """The nearest numbers with 11 digits, in float64."""
    digits, exponents = torch.frexp(values.double())
    return torch.ldexp(torch.round(digits * 2**11) / 2**11, exponents)


def exact_gradients(gradient: Tensor, x: Tensor, w: Tensor, pad: Pair) -> tuple[Tensor, Tensor]:
    """Of sums of factors with 11 digits."""
    blobs = [as_factors(blob) for blob in (gradient, x, w)]
    below, along, _ = torch.ops.aten.convolution_backward(
        *blobs, None, (1, 1), pad, (1, 1), False, (0, 0), 1, (True, True, False)
    )
    return below, along


def check(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> None:
    for own, other in zip(found, exact, strict=True):
        assert own.shape == other.shape and own.dtype == torch.float32
        assert own.is_contiguous(memory_format=torch.channels_last)
        assert float((own.double() - other).abs().max() / other.abs().max()) < TOLERANCE


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize(
    ("num", "channels", "outputs", "size", "pad"),
    [
        (2, 16, 24, (5, 7), (1, 1)),
        (3, 72, 136, (4, 3), (0, 0)),
        (2, 8, 72, (6, 5), (2, 1)),
        (1, 200, 8, (1, 1), (1, 0)),
    ],
)
def test_against_exact_sums(
    num: int, channels: int, outputs: int, size: Pair, pad: Pair, scale: float
) -> None:
    """Sums of factors with 11 digits, however large or small these are."""
    x = draw(num, channels, *size, seed=1) / scale
    gradient, kernel = draw(num, outputs, *size, seed=2) * scale, (2 * pad[0] + 1, 2 * pad[1] + 1)
    w = draw(outputs, channels, *kernel, seed=3)
    blobs = gradient, x, w
    assert half_gradients.fits(*blobs, pad)
    found = half_gradients.gradients(*blobs, pad, below=True)
    check(found, exact_gradients(*blobs, pad))
    alone = half_gradients.gradients(*blobs, pad, below=False)
    assert alone[0] is None and torch.equal(alone[1], found[1])


def test_small_factors_are_summed_up() -> None:
    """One that is 2^-30 of the largest has fewer digits, not none."""
    x, gradient = torch.ones(1, 8, 1, 3, device=DEVICE), torch.ones(1, 8, 1, 3, device=DEVICE)
    x[0, 0] = torch.tensor([2.0**15, 0, 0])
    x[0, 1] = torch.tensor([0, 1.25 * 2.0**-15, 0])
    last = torch.channels_last
    blobs = [blob.contiguous(memory_format=last) for blob in (gradient, x)]
    w = draw(8, 8, 1, 1, seed=1)
    _, found = half_gradients.gradients(*blobs, w, (0, 0), below=False)
    assert found[0, :3, 0, 0].tolist() == [2.0**15, 1.25 * 2.0**-15, 3.0]


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_what_is_not_finite_is_passed_on(value: float, where: int) -> None:
    blobs = [draw(2, 8, 3, 3, seed=seed) for seed in (1, 2)]
    blobs[where][1, 5, 1, 2] = value
    w = draw(8, 8, 3, 3, seed=3)
    below, along = half_gradients.gradients(*blobs, w, (1, 1), below=True)
    bad = along[5] if where == 0 else along[:, 5]
    assert not bad.isfinite().any()
    assert where == 1 or not below[1, :, :, 1:].isfinite().any()


def test_a_blob_of_zeros() -> None:
    blobs = [draw(2, 8, 3, 3, seed=1), draw(2, 8, 3, 3, seed=2), draw(8, 8, 3, 3, seed=3)]
    for place in range(3):
        given = [*blobs[:place], torch.zeros_like(blobs[place]), *blobs[place + 1 :]]
        below, along = half_gradients.gradients(*given, (1, 1), below=True)
        assert below.any() == (place == 1) and along.any() == (place == 2)


def test_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are rounded a part at a time, each by its own largest numbers."""
    x, gradient, w = draw(5, 8, 4, 3, seed=1), draw(5, 16, 4, 3, seed=2), draw(16, 8, 3, 3, seed=3)
    x[2] *= 1000
    gradient[1] *= 1000
    exact = exact_gradients(gradient, x, w, (1, 1))
    for most in (1 << 26, 2 * 20 * 24, 1):
        monkeypatch.setattr(half_gradients, "MOST", most)
        check(half_gradients.gradients(gradient, x, w, (1, 1), below=True), exact)


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x, gradient, w = draw(2, 8, 4, 3, seed=1), draw(2, 16, 4, 3, seed=2), draw(16, 8, 3, 3, seed=3)
    assert half_gradients.fits(gradient, x, w, (1, 1))
    assert not half_gradients.fits(gradient, x, w, (1, 0))
    assert not half_gradients.fits(draw(2, 16, 4, 2, seed=2), x, w, (1, 1))
    assert not half_gradients.fits(gradient, x.contiguous(), w, (1, 1))
    assert not half_gradients.fits(gradient.contiguous(), x, w, (1, 1))
    assert not half_gradients.fits(gradient, x.bfloat16(), w, (1, 1))
    assert not half_gradients.fits(
        gradient, draw(2, 12, 4, 3, seed=1), w[:, [*range(8), 0, 1, 2, 3]], (1, 1)
    )
    assert not half_gradients.fits(gradient[:0], x[:0], w, (1, 1))
    image = 16 * 5 * 4
    monkeypatch.setattr(half_gradients, "LARGEST", 2 * image - 1)
    assert not half_gradients.fits(gradient, x, w, (1, 1))
    monkeypatch.setattr(half_gradients, "LARGEST", 2 * image)
    assert half_gradients.fits(gradient, x, w, (1, 1))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not half_gradients.fits(gradient, x, w, (1, 1))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """When our kernels are asked for gradients, whether they are for those of bottoms as well.

    As on a GPU where they are faster.
    """
    found: list[bool] = []
    real = half_gradients.gradients

    def counting(*given: Any, below: bool) -> Any:
        found.append(below)
        return real(*given, below=below)

    monkeypatch.setattr(half_gradients, "gradients", counting)
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    monkeypatch.setattr(convolution, "MATRIX_DEVICES", (DEVICE,))
    monkeypatch.setattr(convolution, "LARGE", 0)
    monkeypatch.setattr(convolution, "LARGE_CONVOLUTION", 0)
    monkeypatch.setattr(half_precision, "_trials", Trials())
    monkeypatch.setattr(half_precision, "LEAST", 0)
    monkeypatch.setattr(trial, "_try", lambda *ways: True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    if DEVICE == "cpu":
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return found


def draw_quarters(*shape: int, seed: int) -> Tensor:
    """Numbers whose products and sums units have exactly."""
    values = torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(seed)) / 4
    return values.to(DEVICE)


def by_hand(
    x: Tensor, w: Tensor, bias: Tensor, stride: Any, pad: Any, dilation: Any, group: int
) -> Tensor:
    """What cuDNN does with a bias and a ReLU, also on a CPU."""
    return F.conv2d(x, w, bias, stride, pad, dilation, group).relu()


SETTINGS = "convolution_param {{ num_output: 16 bias_filler {{ type: 'uniform' }} {} }}"


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("settings", "ours"),
    [
        ("kernel_size: 3 pad: 1", True),
        ("kernel_h: 3 kernel_w: 1 pad_h: 1 pad_w: 0", True),
        ("kernel_size: 1", False),
        ("kernel_size: 3", False),
        ("kernel_size: 3 pad: 1 stride: 2", False),
        ("kernel_size: 3 pad: 2 dilation: 2", False),
        ("kernel_size: 3 pad: 1 group: 2", False),
    ],
)
def test_a_layer(
    settings: str,
    ours: bool,
    relu: bool,
    deferred: bool,
    counted: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a ReLU after it or without, and whoever asks for the weight's gradient."""
    monkeypatch.setattr(torch, "cudnn_convolution_relu", by_hand)
    context = Context(device=torch.device(DEVICE))
    text = input_layer(data=(2, 8, 6, 5))
    text += layer("c", "Convolution", "data", "c", SETTINGS.format(settings))
    text += layer("r", "ReLU", "c", "c") if relu else ""
    text += "layer { name: 'loss' type: 'Reduction' bottom: 'c' top: 'l' loss_weight: 1 "
    net = make_net(text + "reduction_param { operation: SUMSQ } }", context=context)
    with torch.no_grad():
        for seed, parameter in enumerate(net.parameters()):
            parameter.copy_(draw_quarters(*parameter.shape, seed=seed))
    context.deferred_gradients = OnTheSpot() if deferred else None
    data = draw_quarters(2, 8, 6, 5, seed=5).requires_grad_()
    net.loss(net.compute({"data": data}, inner=False)).backward()
    if context.deferred_gradients is not None:
        context.deferred_gradients.join()
    conv = net.layer("c")
    assert isinstance(conv, convolution.BaseConvolution)
    blobs = [data, *net.parameters()]
    x, w, b = exact = [blob.detach().double().requires_grad_() for blob in blobs]
    top = F.conv2d(x, w, b, conv.stride, conv.pad, conv.dilation, conv.group)
    (top.relu() if relu else top).square().sum().backward()
    for blob, other in zip(blobs, exact, strict=True):
        assert blob.grad is not None and other.grad is not None
        torch.testing.assert_close(blob.grad.double(), other.grad, rtol=1e-6, atol=0)
    assert counted == ([not deferred] if ours else [])


def test_small_layers_are_cudnns(counted: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = draw(2, 16, 4, 3, seed=2), draw(2, 8, 4, 3, seed=1), draw(16, 8, 3, 3, seed=3)
    plain = half_precision.HalfGradients((1, 1), (1, 1), (1, 1), 1)
    products = 2 * 16 * 4 * 3 * 8 * 9
    for least, asked in ((products + 1, 0), (products, 1)):
        monkeypatch.setattr(half_precision, "LEAST", least)
        plain.weight_gradient(*blobs)
        assert len(counted) == asked


@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("pays", [{"both", "weight"}, {"weight"}, set()])
def test_what_is_faster(
    pays: set[str],
    wanted: tuple[bool, bool],
    counted: list[bool],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both gradients from the same rounded factors, the weight's alone, or none; what is wanted."""
    monkeypatch.setattr(half_precision.HalfGradients, "_pays", lambda self, of, *given: of in pays)
    x, gradient, w = (
        draw(2, 8, 4, 3, seed=1),
        draw(2, 16, 4, 3, seed=2),
        draw(16, 8, 3, 3, seed=3),
    )
    found = half_precision.HalfGradients((1, 1), (1, 1), (1, 1), 1).gradients(
        gradient, x, w, wanted
    )
    for own, other, is_wanted in zip(
        found, exact_gradients(gradient, x, w, (1, 1)), wanted, strict=True
    ):
        assert (own is not None) == is_wanted
        if own is not None:
            torch.testing.assert_close(own.double(), other, rtol=1e-2, atol=1e-2)
    both = "both" in pays and all(wanted)
    assert counted == ([True] if both else [False] if pays and wanted[1] else [])


@pytest.mark.parametrize("last", [False, True])
def test_the_gradient_takes_the_layout_of_the_images(last: bool) -> None:
    """Else each backward pass of a net in fp32, which has planes, would copy it twice."""
    given: list[Tensor] = []

    class Noting(half_precision.HalfGradients):
        def _backward(self, gradient: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
            given.append(gradient)
            return super()._backward(gradient, *rest)

    wanted = torch.channels_last if last else torch.contiguous_format
    x = draw(2, 8, 4, 3, seed=1).contiguous(memory_format=wanted)
    gradient, w = draw(2, 16, 4, 3, seed=2).contiguous(), draw(16, 8, 3, 3, seed=3)
    Noting((1, 1), (1, 1), (1, 1), 1).gradients(gradient, x, w, (True, True))
    assert len(given) == 2
    assert all(each.is_contiguous(memory_format=wanted) for each in given)
