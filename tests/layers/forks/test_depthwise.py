"""Depthwise convolutions against one product after the other in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from caffe_dns.layers.base import Context, Layer
from caffe_dns.layers.masked import DeviationMasks
from tests.layers.harness import check_gradients, draw, make_layer, refused, run

KINDS = ["DepthwiseConvolution", "ConvolutionDepthwise"]
SHAPE = (2, 3, 7, 6)


def depthwise(kind: str, settings: str, context: Context | None = None) -> Layer:
    text = f"type: '{kind}' convolution_param {{ num_output: 3 group: 3 {settings} }}"
    return make_layer(text, SHAPE, context=context).double()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("stride", "pad", "dilation"), [(1, 1, 1), (2, 0, 1), (1, 2, 2)])
def test_each_channel_by_itself(kind: str, stride: int, pad: int, dilation: int) -> None:
    settings = f"kernel_h: 3 kernel_w: 2 stride: {stride} pad: {pad} dilation: {dilation}"
    layer = depthwise(kind, settings, Context(surgery=False))
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=20 + index))
    weight, bias = (blob.detach().numpy() for blob in layer.blobs)
    assert weight.shape == (3, 1, 3, 2)

    bottom = draw(*SHAPE)
    (top,) = run(layer, bottom)
    padded = np.pad(bottom.numpy(), ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    expected = np.zeros(top.shape)
    for n, c, y, x in itertools.product(*map(range, top.shape)):
        expected[n, c, y, x] = bias[c] + sum(
            weight[c, 0, i, j] * padded[n, c, y * stride + i * dilation, x * stride + j * dilation]
            for i, j in itertools.product(range(3), range(2))
        )
    np.testing.assert_allclose(top.detach(), expected, rtol=1e-12)
    check_gradients(layer, bottom)


@pytest.mark.parametrize("kind", KINDS)
def test_surgery(kind: str) -> None:
    layer = depthwise(kind, "kernel_size: 3 threshold: 1 bias_term: false")
    assert isinstance(layer, DeviationMasks)
    weight, mask = layer.blobs
    assert mask.shape == weight.shape == (3, 1, 3, 3)
    with torch.no_grad():
        weight.copy_(draw(*weight.shape))
    layer.renew_masks()
    values = weight.detach().numpy()
    # Kept is what is further than one deviation away from the mean.
    expected = np.abs(values - values.mean()) > values.std()
    np.testing.assert_array_equal(mask.numpy(), expected)
    masked = make_layer(
        "type: 'Convolution' convolution_param { num_output: 3 group: 3 kernel_size: 3 "
        "bias_term: false }",
        SHAPE,
        context=Context(surgery=False),
    ).double()
    with torch.no_grad():
        masked.blobs[0].copy_(weight * mask)
    bottom = draw(*SHAPE)
    torch.testing.assert_close(run(layer, bottom), run(masked, bottom))


def test_which_channels_they_take() -> None:
    text = (
        "type: 'DepthwiseConvolution' convolution_param { num_output: 6 kernel_size: 3 group: 3 }"
    )
    assert refused(text, SHAPE) == (
        "layer 'layer': convolution_param.group: the bottom has 3 channels: num_output and group "
        "have to be as many, not 6 and 3"
    )
    other = make_layer(text.replace("DepthwiseConvolution", "ConvolutionDepthwise"), SHAPE)
    assert other.reshape([SHAPE]) == [(2, 3, 5, 4)]
