"""Building single layers from a few lines of prototxt, and checking their gradients."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from google.protobuf import text_format
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers import Context, Layer, layer_types
from caffe_dns.layers.base import Shape
from caffe_dns.proto.caffe_pb2 import LayerParameter


def make_layer(
    definition: str, *shapes: Shape, tops: int = 1, context: Context | None = None
) -> Layer:
    """The layer of a definition without name, bottoms and tops, set up for bottoms of `shapes`."""
    param = LayerParameter(name="layer")
    if "phase:" not in definition:
        definition += " phase: TEST"
    text_format.Merge(definition, param)
    if not param.bottom:
        param.bottom.extend(f"in{i}" for i in range(len(shapes)))
    if not param.top:
        param.top.extend(f"out{i}" for i in range(tops))
    layer = layer_types[param.type](param, context or Context())
    layer.setup(shapes)
    return layer


def run(layer: Layer, *bottoms: Tensor) -> list[Tensor]:
    """The tops for `bottoms`; their shapes must be those that `reshape` gives for them."""
    result = layer(*bottoms)
    tops = [result] if isinstance(result, Tensor) else list(result)
    assert [tuple(top.shape) for top in tops] == layer.reshape([tuple(b.shape) for b in bottoms])
    return tops


def draw(*shape: int, seed: int = 0, positive: bool = False) -> Tensor:
    """Normally distributed float64 numbers, a little away from 0, where many layers have a kink."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, dtype=torch.float64, generator=generator)
    values = values + 0.05 * values.sign()
    return values.abs() if positive else values


def check_gradients(layer: Layer, *bottoms: Tensor) -> None:
    """Compare the gradients of all bottoms and parameters with differences, in float64."""
    layer.double()
    names = [name for name, _ in layer.named_parameters()]
    leaves = [bottom.clone().requires_grad_() for bottom in bottoms]
    leaves += [
        draw(*p.shape, seed=9 + i).requires_grad_() for i, p in enumerate(layer.parameters())
    ]

    def forward(*values: Tensor) -> tuple[Tensor, ...]:
        parameters = dict(zip(names, values[len(bottoms) :], strict=True))
        result = torch.func.functional_call(layer, parameters, values[: len(bottoms)])
        return (result,) if isinstance(result, Tensor) else tuple(result)

    assert torch.autograd.gradcheck(forward, leaves)


def gradient_of(layer: Layer, values: Sequence[float]) -> list[float]:
    """The gradient of the sum of the top with respect to a bottom with these entries."""
    bottom = torch.tensor([list(values)], dtype=torch.float64, requires_grad=True)
    run(layer.double(), bottom)[0].sum().backward()
    assert bottom.grad is not None
    return bottom.grad[0].tolist()


def refused(definition: str, *shapes: Shape, tops: int = 1) -> str:
    """What the layer's setup complains about."""
    with pytest.raises(CaffeError) as caught:
        make_layer(definition, *shapes, tops=tops)
    assert caught.value.layer == "layer"
    return str(caught.value)
