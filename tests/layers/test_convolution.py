"""Convolutions against recorded cases, Caffe's sums written out in float64, and differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns.layers import convolution
from caffe_dns.layers.base import Context, Layer
from caffe_dns.layers.convolution import BaseConvolution
from tests import nets
from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.oracle import GOLDEN, run_layer_case

CASES = sorted(path.name for path in (GOLDEN / "layers").glob("*conv*"))
PLAIN = Context(surgery=False)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", CASES)
def test_golden_case(name: str) -> None:
    run_layer_case(name)


@pytest.mark.parametrize("name", [name for name in CASES if "conv_1d" not in name])
def test_golden_case_with_channels_innermost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "LARGE_CONVOLUTION", 0)
    run_layer_case(name)


def conv(settings: str, *shapes: tuple[int, ...], kind: str = "Convolution") -> Layer:
    """A layer of random float64 weights, without a mask."""
    text = f"type: '{kind}' convolution_param {{ {settings} }}"
    layer = make_layer(text, *shapes, tops=len(shapes), context=PLAIN).double()
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=20 + index))
    return layer


def at(channels: slice, place: tuple[int, ...]) -> tuple[Any, ...]:
    """The index of these channels at this place in all images."""
    return (slice(None), channels, *place)


def restated(layer: Layer, bottom: np.ndarray, *, transposed: bool = False) -> np.ndarray:
    """The sum over groups, channels and kernel places, one product after the other.

    A transposed convolution adds each input's products where a convolution would read them.
    """
    assert isinstance(layer, BaseConvolution)
    axis, group = layer.channel_axis, layer.group
    weight, *bias = (blob.detach().numpy() for blob in layer.blobs)
    shape = layer.reshape([bottom.shape])[0]
    top = np.zeros(shape)
    flat_in = bottom.reshape(-1, *bottom.shape[axis:])
    flat_out = top.reshape(-1, *shape[axis:])
    small, large = (flat_in, flat_out) if transposed else (flat_out, flat_in)
    per_small, per_large = small.shape[1] // group, large.shape[1] // group
    kernel = itertools.product(*map(range, layer.kernel))
    before = [layer.padding(i)[0] for i in range(layer.num_spatial_axes)]
    places = list(itertools.product(*map(range, small.shape[2:])))
    for offset, place in itertools.product(list(kernel), places):
        other = tuple(
            p * s - pad + d * o
            for p, s, pad, d, o in zip(
                place, layer.stride, before, layer.dilation, offset, strict=True
            )
        )
        if any(not 0 <= o < extent for o, extent in zip(other, large.shape[2:], strict=True)):
            continue
        for g in range(group):
            s = slice(g * per_small, (g + 1) * per_small)
            c = slice(g * per_large, (g + 1) * per_large)
            kernel_place: tuple[Any, ...] = (s, ..., *offset)
            part = weight[kernel_place]  # [small channels of the group, large ones]
            if transposed:
                flat_out[at(c, other)] += flat_in[at(s, place)] @ part
            else:
                flat_out[at(s, place)] += flat_in[at(c, other)] @ part.T
    if bias:
        flat_out += bias[0].reshape(-1, *[1] * (flat_out.ndim - 2))
    return top


SETTINGS = [
    ("num_output: 4 kernel_size: 3", (2, 3, 6, 5)),
    (
        "num_output: 4 kernel_h: 2 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 1 pad_w: 2",
        (2, 3, 6, 5),
    ),
    ("num_output: 6 kernel_size: 3 group: 3 pad: 1 bias_term: false", (2, 6, 5, 4)),
    ("num_output: 6 kernel_size: 2 kernel_size: 3 dilation: 2 dilation: 1", (1, 2, 7, 6)),
    ("num_output: 6 kernel_size: 2 dilation_h: 3 dilation_w: 2", (1, 2, 7, 6)),
    ("num_output: 6 kernel_size: 2 dilation_w: 3", (1, 2, 7, 6)),
    ("num_output: 3 kernel_size: 4 stride: 2", (2, 3, 9)),
    (
        "num_output: 2 kernel_size: 2 stride: 1 stride: 2 stride: 1 pad: 0 pad: 1 pad: 1",
        (1, 2, 3, 5, 4),
    ),
    ("num_output: 8 kernel_size: 3 group: 4 stride: 2 pad: 1", (2, 4, 5, 6)),
    ("num_output: 4 kernel_size: 2 axis: 2", (2, 3, 3, 4, 5)),
    ("num_output: 4 kernel_size: 2 axis: 0", (3, 4, 5)),
    ("num_output: 4 kernel_size: 2 axis: -2", (2, 3, 5)),
    ("num_output: 4 kernel_size: 3 stride: 2 pad_r: 1 pad_b: 1", (2, 3, 6, 5)),
    ("num_output: 4 kernel_size: 3 pad_l: 1 pad_r: 1 pad_t: 2 pad_b: 2", (2, 3, 6, 5)),
    ("num_output: 4 kernel_size: 3 pad_l: 3 pad_t: 1 pad_b: 2 dilation: 2 group: 2", (2, 4, 6, 5)),
    ("num_output: 4 kernel_size: 2 axis: 2 pad_l: 1", (2, 2, 3, 4, 5)),
]


@pytest.mark.parametrize(("settings", "shape"), SETTINGS)
def test_convolution_is_the_sum_of_its_products(settings: str, shape: tuple[int, ...]) -> None:
    layer = conv(settings, shape)
    bottom = draw(*shape)
    np.testing.assert_allclose(
        run(layer, bottom)[0].detach(), restated(layer, bottom.numpy()), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize(("settings", "shape"), SETTINGS)
def test_deconvolution_is_the_sum_of_its_products(settings: str, shape: tuple[int, ...]) -> None:
    layer = conv(settings, shape, kind="Deconvolution")
    bottom = draw(*shape)
    expected = restated(layer, bottom.numpy(), transposed=True)
    np.testing.assert_allclose(run(layer, bottom)[0].detach(), expected, rtol=1e-10, atol=1e-12)


SIDES = "num_output: 2 kernel_size: 3 stride: 2 "


@pytest.mark.parametrize(
    ("kind", "sides", "size"),
    [
        ("Convolution", "pad_l: 1 pad_r: 2 pad_b: 4", (5, 4)),
        ("Convolution", "pad: 1 pad_l: 0", (4, 3)),
        ("Deconvolution", "pad_l: 1 pad_r: 2 pad_b: 4", (11, 10)),
        ("Deconvolution", "pad_l: -1 pad_r: -2 pad_b: 4", (11, 16)),
    ],
)
@pytest.mark.parametrize("large", [1, 10**9])
def test_padding_of_each_side(
    kind: str, sides: str, size: tuple[int, int], large: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolution, "LARGE_CONVOLUTION", large)
    layer, bottom = conv(SIDES + sides, (2, 3, 7, 6), kind=kind), draw(2, 3, 7, 6)
    (top,) = run(layer, bottom)
    assert top.shape[2:] == size
    expected = restated(layer, bottom.numpy(), transposed=kind == "Deconvolution")
    np.testing.assert_allclose(top.detach(), expected, rtol=1e-10, atol=1e-12)
    check_gradients(layer, bottom)


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_no_spatial_axes(kind: str) -> None:
    layer = conv("num_output: 6 group: 2 axis: 1", (3, 4), kind=kind)
    bottom = draw(3, 4)
    weight, bias = (blob.detach() for blob in layer.blobs)
    parts = [
        bottom[:, 2 * g : 2 * g + 2]
        @ (weight[3 * g : 3 * g + 3].T if kind == "Convolution" else weight[2 * g : 2 * g + 2])
        for g in range(2)
    ]
    torch.testing.assert_close(run(layer, bottom)[0], torch.cat(parts, 1) + bias)


GRADIENTS = [
    ("num_output: 4 kernel_size: 2 group: 2 stride: 2 pad: 1", [(2, 4, 3, 4)]),
    ("num_output: 2 kernel_size: 2 dilation: 2", [(1, 2, 4, 5), (1, 2, 4, 5)]),
    ("num_output: 2 kernel_size: 3 bias_term: false", [(2, 1, 5)]),
    ("num_output: 2 kernel_size: 2 axis: 2", [(2, 2, 1, 3, 3)]),
]


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize(("settings", "shapes"), GRADIENTS)
def test_gradients(settings: str, shapes: list[tuple[int, ...]], kind: str) -> None:
    layer = conv(settings, *shapes, kind=kind)
    check_gradients(layer, *(draw(*shape, seed=i) for i, shape in enumerate(shapes)))


def test_bottoms_share_the_weight() -> None:
    layer = conv("num_output: 4 kernel_size: 3", (2, 3, 6, 5), (2, 3, 6, 5))
    first, second = draw(2, 3, 6, 5, seed=1), draw(2, 3, 6, 5, seed=2)
    tops = run(layer, first, second)
    assert torch.equal(tops[0], layer(first, first)[1])
    assert torch.equal(tops[1], layer(second, second)[0])


@pytest.mark.parametrize(
    "settings", ["num_output: 16 kernel_size: 3 pad: 1", "num_output: 16 kernel_size: 3"]
)
def test_large_convolutions_keep_channels_innermost(settings: str) -> None:
    text = (
        f"type: 'Convolution' convolution_param {{ {settings} weight_filler {{ type: 'msra' }} }}"
    )
    large, small = (make_layer(text, (n, 8, 40, 30)) for n in (16, 1))
    assert large.blobs[0].is_contiguous(memory_format=torch.channels_last)
    assert small.blobs[0].is_contiguous()
    bottom = torch.rand(16, 8, 40, 30, generator=torch.Generator().manual_seed(0))
    tops = [
        torch.cat([layer(piece)[0] for piece in bottom.split(n)])
        for layer, n in ((large, 16), (small, 1))
    ]
    torch.testing.assert_close(*tops, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "shapes", "message"),
    [
        ("kernel_size: 3", [(2, 3, 6, 5)], "convolution_param.num_output: must be given and posit"),
        ("num_output: 4", [(2, 3, 6, 5)], "convolution_param.kernel_size: given 0 times; once, or"),
        ("num_output: 4 kernel_size: 0", [(2, 3, 6, 5)], "kernel_size: must be at least 1"),
        ("num_output: 4 kernel_size: 1 stride: 0", [(2, 3, 6, 5)], "stride: must be at least 1"),
        (
            "num_output: 4 kernel_size: 2 kernel_h: 2 kernel_w: 2",
            [(2, 3, 6, 5)],
            "give either kernel",
        ),
        (
            "num_output: 4 kernel_h: 2 kernel_w: 2",
            [(2, 3, 6)],
            "kernel_h and kernel_w are for 2 spa",
        ),
        (
            "num_output: 4 kernel_size: 2 group: 2",
            [(2, 3, 6, 5)],
            "does not divide the bottom's cha",
        ),
        ("num_output: 4 kernel_size: 2 group: 3", [(2, 3, 6, 5)], "does not divide the num_output"),
        ("num_output: 4 kernel_size: 2 group: 0", [(2, 3, 6, 5)], "group 0 does not divide"),
        ("num_output: 4 kernel_size: 7", [(2, 3, 6, 9)], "is larger than the padded input (6, 9)"),
        ("num_output: 4 kernel_size: 9 stride: 3", [(2, 3, 6, 9)], "than the padded input (6, 9)"),
        (
            "num_output: 4 kernel_size: 2 axis: 4",
            [(2, 3, 6, 5)],
            "axis 4 is out of range for a blob",
        ),
        ("num_output: 4 kernel_size: 2", [(2, 3, 2, 2, 2, 2)], "4 spatial axes; at most 3"),
        (SIDES + "pad_l: 1 pad: 1", [(2, 3, 6, 5)], "pad_l: give either pad or the padding of"),
        (SIDES + "pad_t: 1 pad_w: 1", [(2, 3, 6, 5)], "pad_l: give either pad_w or the padding"),
        (SIDES + "pad_t: 1", [(2, 3, 6)], "pad_l: is for 2 spatial axes only"),
        (SIDES + "pad_t: 1 pad_b: -1", [(2, 3, 6, 5)], "pad_b: must be at least 0 and at most"),
        ("num_output: 4 kernel_size: 2", [(2, 3, 6, 5), (2, 3, 5, 5)], "must have the same shape"),
    ],
)
def test_wrong_settings(settings: str, shapes: list[tuple[int, ...]], message: str) -> None:
    text = f"type: 'Convolution' convolution_param {{ {settings} }}"
    assert message in refused(text, *shapes, tops=len(shapes))


WINDOW = "pooling_param { kernel_h: 1 kernel_w: 2 stride_h: 1 stride_w: 4 }"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_a_kernel_that_comes_to_outreach_its_bottom(
    large: bool, pooled: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caffe's one output, also where the net was built for bottoms that the kernel fits into."""
    monkeypatch.setattr(convolution, "LARGE_CONVOLUTION", 0 if large else 1 << 62)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = "convolution_param { num_output: 20 kernel_size: 5 stride: 3 sparsity_term: false }"
    text = nets.input_layer(data=(2, 16, 14, 20))
    text += nets.layer("c", "Convolution", "data", "c", settings)
    after = ("Pooling", "c", "p", WINDOW) if pooled else ("ReLU", "c", "c")
    text += nets.layer("p", *after)
    text += nets.layer("l", "Reduction", after[2], "l", "loss_weight: 1")
    net = nets.make_net(text, context=Context(device=torch.device(device)))
    larger, data = (draw(2, 16, *size).float().to(device) for size in ((14, 20), (3, 20)))
    net.params["c"][0].data.copy_(draw(20, 16, 5, 5, seed=1))
    net.compute({"data": larger}, inner=False)  # chooses how to compute
    net.loss(net.compute({"data": data}, inner=False)).backward()
    weight, bias = (blob.detach() for blob in net.params["c"])
    weight = weight.clone().requires_grad_()
    top = F.conv2d(F.pad(data, (0, 0, 0, 2)), weight, bias, 3)
    top = F.max_pool2d(top, (1, 2), (1, 4)) if pooled else top.relu()
    top.sum().backward()
    torch.testing.assert_close(net.params["c"][0].grad, weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(net({"data": data})[after[2]], top, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", ["engine: CUDNN", "engine: CAFFE", "force_nd_im2col: true"])
def test_settings_without_effect(setting: str) -> None:
    base = "num_output: 4 kernel_size: 3"
    bottom: Tensor = draw(2, 3, 6, 5)
    tops = [conv(f"{base} {more}", (2, 3, 6, 5))(bottom)[0] for more in ("", setting)]
    assert torch.equal(*tops)
