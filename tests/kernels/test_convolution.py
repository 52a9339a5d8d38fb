"""Convolutions of few channels in Triton against PyTorch in float64; interpreted without a GPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels, layers
from caffe_dns.layers import pooled_convolution
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.pooling import Pooling
from caffe_dns.layers.products import Convolved, FewChannels, Product
from caffe_dns.layers.weight_gradients import DeferredWeightGradients, Then
from caffe_dns.net import Net, fusion
from tests.nets import input_layer, layer, make_net

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports it

pytest.importorskip("triton")
convolution = import_module("caffe_dns.kernels.convolution")

TOLERANCE = 1e-5 if DEVICE == "cpu" else 2**-9  # a factor has 11 digits in TF32
SHAPES = [
    # Channels, outputs, image, kernel, pad: rows of a kernel in one tile and in several.
    (1, 5, (9, 8), (5, 3), (0, 0)),
    (5, 18, (6, 7), (3, 3), (1, 2)),
    (70, 3, (3, 4), (1, 2), (0, 1)),
]
Pair = tuple[int, int]


@pytest.fixture(autouse=True)
def tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)


def draw(*shape: int, seed: int) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(DEVICE).contiguous(memory_format=torch.channels_last)


def check(found: Tensor, exact: Tensor | None) -> None:
    assert exact is not None and found.shape == exact.shape
    error = (found.detach().double() - exact.detach()).abs().max()
    assert float(error / exact.detach().abs().max()) < TOLERANCE


def exact_gradient(gradient: Tensor, x: Tensor, w: Tensor, pad: Pair) -> Tensor:
    """That of the weight, in float64."""
    exact = w.double().requires_grad_()
    F.conv2d(x.double(), exact, padding=pad).backward(gradient.double())
    assert exact.grad is not None
    return exact.grad


@pytest.mark.parametrize(("channels", "outputs", "size", "kernel", "pad"), SHAPES)
def test_gradients_of_parameters(
    channels: int, outputs: int, size: Pair, kernel: Pair, pad: Pair
) -> None:
    x, w = draw(3, channels, *size, seed=1), draw(outputs, channels, *kernel, seed=2)
    gradient = draw(*torch.conv2d(x, w, padding=pad).shape, seed=3)
    assert convolution.fits(x, w, gradient)
    found, along_bias = convolution.parameter_gradients(gradient, x, w, pad)
    assert found.stride() == w.stride()
    check(found, exact_gradient(gradient, x, w, pad))
    check(along_bias, gradient.double().sum((0, 2, 3)))


@pytest.mark.parametrize(("channels", "outputs", "size", "kernel", "pad"), SHAPES)
def test_gradients_of_bottoms(
    channels: int, outputs: int, size: Pair, kernel: Pair, pad: Pair
) -> None:
    x, w = draw(3, channels, *size, seed=1), draw(outputs, channels, *kernel, seed=2)
    exact = x.double().requires_grad_()
    top = F.conv2d(exact, w.double(), padding=pad)
    gradient = draw(*top.shape, seed=3)
    top.backward(gradient.double())
    found = convolution.bottom_gradient(gradient, x, w, pad)
    assert found.stride() == x.stride()
    check(found, exact.grad)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("pool", [(2, 2), (1, 2), (4, 1)])
@pytest.mark.parametrize(("channels", "outputs", "size", "kernel", "pad"), SHAPES)
def test_maxima(
    channels: int, outputs: int, size: Pair, kernel: Pair, pad: Pair, pool: Pair, relu: bool
) -> None:
    size = (size[0] + 2, size[1] + 2)
    x, w = draw(3, channels, *size, seed=1), draw(outputs, channels, *kernel, seed=2)
    b = draw(1, outputs, 1, 1, seed=4).flatten()
    whole = F.conv2d(x.double(), w.double(), b.double(), padding=pad)
    whole = whole.relu() if relu else whole
    exact = F.max_pool2d(whole, pool)
    extent = (exact.shape[2], exact.shape[3])
    top, winners = convolution.maxima(x, w, b, pad, pool, extent, relu=relu)
    check(top, exact)
    # Where they come from, and whether there is anything.
    members = F.unfold(whole.flatten(0, 1)[:, None], pool, stride=pool)
    members = members.view(*exact.shape[:2], -1, *extent)
    places = winners.long().where(winners < 255, 0)[:, :, None]
    chosen = members.gather(2, places)[:, :, 0].where(winners < 255, 0)
    check(chosen, exact)
    assert torch.equal(winners == 255, top == 0) or not relu


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite() -> None:
    x = torch.zeros(1, 1, 2, 4, device=DEVICE)
    x[0, 0, 0] = torch.tensor([1.0, float("nan"), -float("inf"), -float("inf")])
    x[0, 0, 1, 2:] = -float("inf")
    top, _ = maxima_of_pixels(x)
    assert top.isnan().flatten().tolist() == [True, False]
    assert top.flatten().tolist()[1] == -float("inf")


def test_the_first_maximum_counts() -> None:
    assert maxima_of_pixels(torch.ones(1, 1, 2, 4, device=DEVICE))[1].flatten().tolist() == [0, 0]


def maxima_of_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    w = torch.ones(1, 1, 1, 1, device=DEVICE)
    found: tuple[Tensor, Tensor] = convolution.maxima(
        x, w, None, (0, 0), (2, 2), (1, 2), relu=False
    )
    return found


def test_a_column_that_was_a_row() -> None:
    """The stride of an axis of one element says nothing."""
    x, w, gradient = draw(2, 3, 6, 1, seed=1), draw(5, 3, 3, 1, seed=2), draw(2, 5, 4, 1, seed=3)
    exact = exact_gradient(gradient, x, w, (0, 0))
    x, gradient = (blob.as_strided(blob.shape, (*blob.stride()[:3], 7)) for blob in (x, gradient))
    assert convolution.fits(x, gradient)
    found, _ = convolution.parameter_gradients(gradient, x, w, (0, 0))
    check(found, exact)


def test_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(2, 3, 4, 5, seed=1)
    assert convolution.fits(x)
    assert not convolution.fits(x.contiguous())
    assert not convolution.fits(x[:, :2])
    assert not convolution.fits(x, x.double())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert not convolution.fits(x)


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
    text = f"convolution_param {{ {settings} weight_filler {{ type: 'xavier' }} }}"
    net = make_net(input_layer(data=(2, 8, 6, 7)) + layer("c", "Convolution", "data", "z", text))
    conv = net.layer("c")
    assert isinstance(conv, BaseConvolution) and conv.convolved is not None
    assert isinstance(conv.convolved, FewChannels) == is_one
    if not is_one:
        return
    plain = Convolved(conv.stride, conv.pad, conv.dilation, conv.group)
    x, w = draw(2, 8, 6, 7, seed=1), draw(*conv.blobs[0].shape, seed=2)
    gradient = draw(*net.blob_shapes["z"], seed=3)
    wanted = plain.weight_gradient(gradient.double(), x.double(), w.double())
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    called = 0
    kernel = convolution.parameter_gradients

    def counted(*given: Any) -> tuple[Tensor, Tensor]:
        nonlocal called
        called += 1
        result: tuple[Tensor, Tensor] = kernel(*given)
        return result

    monkeypatch.setattr(convolution, "parameter_gradients", counted)
    check(conv.convolved.weight_gradient(gradient, x, w), wanted)
    assert called == 1


@pytest.mark.parametrize(
    ("settings", "relu", "pool", "is_one"),
    [
        ("num_output: 5 kernel_size: 3", "", "kernel_size: 2 stride: 2", True),
        ("num_output: 5 kernel_size: 3 pad: 1", "in place", "kernel_size: 2 stride: 2", True),
        ("num_output: 5 kernel_size: 3", "", "kernel_size: 2 stride: 1", False),
        ("num_output: 5 kernel_size: 3", "", "kernel_size: 3 stride: 3", False),
        ("num_output: 5 kernel_size: 4", "", "kernel_size: 2 stride: 2", False),
        ("num_output: 66 kernel_size: 3", "", "kernel_size: 2 stride: 2", False),
    ],
)
def test_layers(
    settings: str, relu: str, pool: str, is_one: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two layers, and what they give with the kernel and without it."""
    monkeypatch.setattr(layers.convolution, "MATRIX_DEVICES", ("cpu",))
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    text = f"convolution_param {{ {settings} weight_filler {{ type: 'xavier' }} "
    text = layer("c", "Convolution", "data", "z", f"{text} bias_filler {{ value: 0.1 }} }}")
    text += layer("r", "ReLU", "z", "z") if relu else ""
    text += layer("p", "Pooling", "z", "p", f"pooling_param {{ pool: MAX {pool} }}")
    text = input_layer(data=(2, 3, 8, 6)) + text + "layer { name: 'loss' type: 'Reduction' "
    text += "bottom: 'p' top: 'l' loss_weight: 1 reduction_param { operation: SUMSQ } }"
    net = make_net(text)
    conv = net.layer("c")
    assert conv is not None
    conv.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.to(DEVICE)
    data = draw(2, 3, 8, 6, seed=1)
    wanted = gradients(net, data)
    monkeypatch.setattr(pooled_convolution, "suit", convolution.fits)
    monkeypatch.setattr(pooled_convolution, "SecondStream", Deferred)
    called = 0
    kernel = convolution.maxima

    def counted(*given: Any, **named: Any) -> tuple[Tensor, Tensor]:
        nonlocal called
        called += 1
        result: tuple[Tensor, Tensor] = kernel(*given, **named)
        return result

    monkeypatch.setattr(convolution, "maxima", counted)
    deferred = Deferred()
    for net.context.deferred_gradients in (None, deferred):
        for own, other in zip(gradients(net, data), wanted, strict=True):
            check(own, other.double())
    assert bool(called) == is_one == bool(deferred.asked)
    with torch.no_grad():
        net.compute({"data": data}, inner=False)
    assert called == 3 * is_one


@pytest.fixture
def small_net(monkeypatch: pytest.MonkeyPatch) -> Net:
    """A convolution, c, and the pooling p of its top, 2 x 5 x 6 x 4."""
    monkeypatch.setattr(layers.convolution, "MATRIX_DEVICES", ("cpu",))
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    text = "convolution_param { num_output: 5 kernel_size: 3 }"
    text = layer("c", "Convolution", "data", "z", text)
    text += layer("p", "Pooling", "z", "p", "pooling_param { kernel_size: 2 stride: 2 }")
    return make_net(input_layer(data=(2, 3, 8, 6)) + text)


def test_a_top_with_more_numbers_than_32_bits_can_count(
    small_net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there in the forward pass, but its gradient is in backward."""
    monkeypatch.setattr(pooled_convolution, "suit", convolution.fits)
    conv, pooling = small_net.layer("c"), small_net.layer("p")
    assert isinstance(conv, BaseConvolution) and isinstance(pooling, Pooling)
    conv.to(DEVICE, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for largest, is_one in ((240, True), (239, False)):
        monkeypatch.setattr("caffe_dns.kernels.layout.LARGEST", largest)
        data = draw(2, 3, 8, 6, seed=1)
        top = pooled_convolution.pooled_convolution(conv, pooling, data, relu=False)
        assert (top is not None) == is_one


def test_masks_are_applied_once_where_the_kernel_is_not_wanted(
    small_net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pooled_convolution, "suit", lambda *blobs: False)
    conv, asked = small_net.layer("c"), []
    assert isinstance(conv, BaseConvolution)
    effective = conv.effective

    def counted(dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        asked.append(dtype)
        return effective(dtype)

    monkeypatch.setattr(conv, "effective", counted)
    small_net.compute({"data": draw(2, 3, 8, 6, seed=1).cpu()}, inner=False)
    assert len(asked) == 1


class Deferred(DeferredWeightGradients):
    """A second stream on a machine without any."""

    with_biases = True

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def takes(self, weight: Tensor, work: int) -> bool:
        return True

    def compute(self, product: Product, weight: Tensor, *inputs: Tensor) -> Then:
        self._bring(product, weight, *inputs)
        return None

    def compute_all(
        self,
        parameters: Sequence[Tensor | None],
        gradients: Callable[[], Sequence[Tensor]],
        *inputs: Tensor,
    ) -> None:
        self.asked += 1
        for parameter, gradient in zip(parameters, gradients(), strict=True):
            assert parameter is not None
            self._gradients.append((parameter, gradient))

    def add_up(self, bias: Tensor, gradient: Tensor, axis: int) -> None:
        self._gradients.append((bias, gradient.sum((0, 2, 3))))


def gradients(net: Net, data: Tensor) -> list[Tensor]:
    """The net's loss, and the gradients of its bottom and its parameters."""
    data = data.clone().requires_grad_()
    loss = net.loss(net.compute({"data": data}, inner=False))
    loss.backward()
    if net.context.deferred_gradients is not None:
        net.context.deferred_gradients.join()
    found = [loss.detach(), *(leaf.grad for leaf in (data, *net.parameters()))]
    net.zero_grad()
    return [blob.clone() for blob in found if blob is not None]
