"""Layers with masks: which blobs they have, what they compute, and where gradients go."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Context, Layer
from caffe_dns.layers.masked import DeviationMasks, MagnitudeMasks, WeightedLayer
from tests.layers.harness import check_gradients, draw, make_layer
from tests.test_mask_rules import deviation_mask, hysteresis_mask, magnitude_moments

CONV = "convolution_param { num_output: 4 kernel_size: 3 SETTINGS }"
IP = "inner_product_param { num_output: 6 SETTINGS }"
BILINEAR = {  # name: definition, bottom shape
    "conv": (f"type: 'Convolution' {CONV}", (2, 3, 5, 4)),
    "conv_group": (
        f"type: 'Convolution' {CONV}".replace("SETTINGS", "group: 2 SETTINGS"),
        (2, 4, 5, 4),
    ),
    "conv_depthwise": (
        f"type: 'Convolution' {CONV}".replace("SETTINGS", "group: 4 pad: 1 SETTINGS"),
        (2, 4, 5, 4),
    ),
    "conv_1d": (f"type: 'Convolution' {CONV}", (2, 3, 7)),
    "conv_3d": (f"type: 'Convolution' {CONV}", (1, 2, 4, 3, 5)),
    "deconv": (
        f"type: 'Deconvolution' {CONV}".replace("SETTINGS", "sparsity_term: true SETTINGS"),
        (2, 3, 5, 4),
    ),
    "ip": (f"type: 'InnerProduct' {IP}", (3, 2, 5)),
    "ip_transpose": (
        f"type: 'InnerProduct' {IP}".replace("SETTINGS", "transpose: true SETTINGS"),
        (3, 2, 5),
    ),
    "cconv": (f"type: 'CConvolution' {CONV}", (2, 3, 5, 4)),
    "cip": (f"type: 'CInnerProduct' {IP}", (3, 2, 5)),
}
DEVIATION = [name for name in BILINEAR if not name.startswith("c") or name.startswith("conv")]
MAGNITUDE = ["cconv", "cip"]


def masked_layer(
    name: str, settings: str = "", more: str = "", surgery: bool = True
) -> WeightedLayer:
    """A layer with random weights and, where it has masks, random masks, in float64."""
    text, shape = BILINEAR[name]
    context = Context(surgery=surgery)
    layer = make_layer(f"{text.replace('SETTINGS', settings)} {more}", shape, context=context)
    assert isinstance(layer, WeightedLayer)
    layer.double()
    for index, blob in enumerate(layer.blobs):
        values = draw(*blob.shape, seed=10 + index)
        blob.data.copy_((values > 0).double() if index in layer.mask_indices else values)
    return layer


def bottom_of(name: str) -> Tensor:
    return draw(*BILINEAR[name][1], seed=1)


# Blobs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", DEVIATION)
def test_blobs_with_one_mask(name: str, bias: bool) -> None:
    settings = "" if bias else "bias_term: false"
    layer = masked_layer(name, settings)
    shapes = [tuple(blob.shape) for blob in layer.blobs]
    assert shapes == [
        shapes[0],
        *[(layer.param.convolution_param.num_output or 6,)] * bias,
        shapes[0],
    ]
    assert layer.mask_indices == (1 + bias,)
    plain = masked_layer(name, settings, surgery=False)
    assert [tuple(blob.shape) for blob in plain.blobs] == shapes[:-1]
    assert plain.mask_indices == ()
    assert plain.spare_param_specs == 1


@pytest.mark.parametrize("surgery", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", MAGNITUDE)
def test_blobs_with_a_mask_for_each_parameter(name: str, bias: bool, surgery: bool) -> None:
    layer = masked_layer(name, "" if bias else "bias_term: false", surgery=surgery)
    shapes = [tuple(blob.shape) for blob in layer.blobs]
    assert shapes == shapes[: 1 + bias] * 2
    assert layer.mask_indices == ((2, 3) if bias else (1,))


@pytest.mark.parametrize("name", ["conv", "ip"])
def test_sparsity_term_switches_the_mask_off(name: str) -> None:
    layer = masked_layer(name, "sparsity_term: false")
    assert len(layer.blobs) == 2
    assert layer.spare_param_specs == 0


def test_a_deconvolution_takes_surgery_only_when_asked() -> None:
    text = BILINEAR["deconv"][0].replace("sparsity_term: true", "").replace("SETTINGS", "")
    assert len(make_layer(text, (2, 3, 5, 4)).blobs) == 2


@pytest.mark.parametrize(
    ("name", "field", "wanted"),
    [("conv", "threshold", 0.6), ("ip", "threshold", 1.281), ("deconv", "threshold", 0.6)],
)
def test_thresholds(name: str, field: str, wanted: float) -> None:
    assert masked_layer(name).threshold == pytest.approx(wanted)
    given = masked_layer(name, "threshold: 0.25")
    assert given.threshold == 0.25


@pytest.mark.parametrize(
    ("filler", "check"),
    [
        ("", lambda mask: (mask == 1).all()),
        ("FILLER { }", lambda mask: (mask == 1).all()),
        ("FILLER { value: 0 }", lambda mask: (mask == 0).all()),
        ("FILLER { type: 'constant' value: 1 }", lambda mask: (mask == 1).all()),
        (
            "FILLER { type: 'uniform' min: 0.5 max: 0.75 }",
            lambda mask: mask.min() >= 0.5 and mask.max() < 0.75 and len(mask.unique()) > 3,
        ),
    ],
)
@pytest.mark.parametrize("name", ["conv", "ip", "cconv", "cip"])
def test_first_values_of_masks(name: str, filler: str, check: Callable[[Tensor], bool]) -> None:
    text, shape = BILINEAR[name]
    if name in MAGNITUDE:
        fillers = [filler.replace("FILLER", f"{kind}_mask_filler") for kind in ("weight", "bias")]
        prefix = "convolution" if name == "cconv" else "inner_product"
        text = f"{text} c{prefix}_param {{ {' '.join(fillers)} }}".replace("SETTINGS", "")
    else:
        text = text.replace("SETTINGS", filler.replace("FILLER", "weight_mask_filler"))
    layer = make_layer(text, shape)
    assert isinstance(layer, WeightedLayer)
    assert all(check(mask) for mask in layer.mask_blobs())


def test_plain_fillers_start_at_zero() -> None:
    layer = make_layer(BILINEAR["conv"][0].replace("SETTINGS", ""), (2, 3, 5, 4))
    assert not layer.blobs[0].any()
    assert not layer.blobs[1].any()


# Forward and backward -----------------------------------------------------------------------------


def unmasked(layer: WeightedLayer, name: str, masked_values: bool) -> Layer:
    """The same layer without masks; its parameters are those of `layer`, times their masks."""
    text, shape = BILINEAR[name]
    text = text.replace("'CConv", "'Conv").replace("'CInner", "'Inner").replace("SETTINGS", "")
    plain = make_layer(text, shape, context=Context(surgery=False)).double()
    biases = 1 if layer.bias_term else 0
    for index, blob in enumerate(plain.blobs):
        values = layer.blobs[index].detach().clone()
        if masked_values and index < len(layer.mask_indices):
            values *= layer.blobs[1 + biases + index]
        blob.data.copy_(values)
    return plain


@pytest.mark.parametrize("name", BILINEAR)
def test_forward_and_the_gradient_below_use_the_masked_weight(name: str) -> None:
    layer = masked_layer(name)
    plain = unmasked(layer, name, masked_values=True)
    bottoms = [bottom_of(name).requires_grad_() for _ in range(2)]
    tops = [net(bottom) for net, bottom in zip((layer, plain), bottoms, strict=True)]
    tops = [top if isinstance(top, Tensor) else top[0] for top in tops]
    torch.testing.assert_close(tops[0], tops[1])
    gradient = draw(*tops[0].shape, seed=3)
    for top in tops:
        top.backward(gradient)
    torch.testing.assert_close(bottoms[0].grad, bottoms[1].grad)
    # The gradient of the masked weight goes to all of the weight, pruned or not.
    for mine, theirs in zip(layer.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad)
        assert (mine.grad != 0).all()
    assert all(mask.grad is None for mask in layer.mask_blobs())


@pytest.mark.parametrize("name", BILINEAR)
def test_gradients_agree_with_differences_where_nothing_is_masked(name: str) -> None:
    layer = masked_layer(name)
    for mask in layer.mask_blobs():
        mask.fill_(1)
    check_gradients(layer, bottom_of(name))


@pytest.mark.parametrize("name", ["conv", "ip"])
def test_masks_of_other_values_multiply(name: str) -> None:
    layer = masked_layer(name)
    layer.mask_blobs()[0].copy_(draw(*layer.blobs[0].shape, seed=4))
    weight, bias = layer.effective()
    torch.testing.assert_close(weight, layer.blobs[0] * layer.blobs[2])
    assert bias is layer.blobs[1]


# Surgery ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEVIATION)
def test_renewing_by_deviation(name: str) -> None:
    layer = masked_layer(name, "threshold: 0.75")
    assert isinstance(layer, DeviationMasks)
    before = layer.mask_blobs()[0].clone()
    weight, bias = (blob.detach().clone() for blob in layer.blobs[:2])
    back = layer.renew_masks()
    expected = deviation_mask(weight.numpy(), 0.75)
    assert np.array_equal(layer.mask_blobs()[0], expected)
    assert int(back) == int((expected > before.numpy()).sum()) > 0
    assert torch.equal(layer.blobs[0], weight)
    assert torch.equal(layer.blobs[1], bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("name", "field"), [("cconv", "cconvolution"), ("cip", "cinner_product")])
def test_renewing_by_magnitude(name: str, field: str, bias: bool) -> None:
    settings = "" if bias else "bias_term: false"
    layer = masked_layer(name, settings, f"{field}_param {{ c_rate: 0.3 }}")
    assert isinstance(layer, MagnitudeMasks)
    for mask in layer.mask_blobs():
        mask[..., 0] = 1  # or a narrow layer may have lost all
    parameters = [blob.detach().numpy() for blob in layer.blobs[: 1 + bias]]
    before = [mask.numpy().copy() for mask in layer.mask_blobs()]
    assert (layer.moments < 0).all()
    layer.measure_moments()
    # The fork's convolution leaves out what is masked, its inner product does not.
    measured = parameters
    if name == "cconv":
        measured = [p * m for p, m in zip(parameters, before, strict=True)]
    mu, sigma = magnitude_moments(measured)
    assert layer.moments.tolist() == pytest.approx([mu, sigma], rel=1e-12)
    back = layer.renew_masks()
    wanted = [
        hysteresis_mask(p, m, mu, sigma, np.float32(0.3))
        for p, m in zip(parameters, before, strict=True)
    ]
    for mask, expected in zip(layer.mask_blobs(), wanted, strict=True):
        assert np.array_equal(mask, expected)
    counts = [(w > b).sum() for w, b in zip(wanted, before, strict=True)]
    assert int(back) == sum(counts) > 0


@pytest.mark.parametrize(("name", "stop"), [("cconv", 10000), ("cip", 8000)])
def test_settings_of_the_official_kind(name: str, stop: float) -> None:
    layer = masked_layer(name)
    assert isinstance(layer, MagnitudeMasks)
    settings = layer.mask_settings()
    assert (settings.power, settings.c_rate, settings.iter_stop) == (1, 3, stop)
    assert settings.gamma == pytest.approx(0.001)
