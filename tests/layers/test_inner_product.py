"""Inner products against recorded cases, numpy in float64, and differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.layers import large_product
from caffe_dns.layers.base import Context, Layer
from caffe_dns.layers.inner_product import InnerProduct
from caffe_dns.layers.products import Linear
from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.oracle import GOLDEN, run_layer_case

CASES = sorted(path.name for path in (GOLDEN / "layers").glob("ip*"))


@pytest.mark.parametrize("name", CASES)
def test_golden_case(name: str) -> None:
    run_layer_case(name)


def inner_product(settings: str, shape: tuple[int, ...]) -> Layer:
    """A layer of random float64 weights, without a mask."""
    text = f"type: 'InnerProduct' inner_product_param {{ {settings} }}"
    layer = make_layer(text, shape, context=Context(surgery=False)).double()
    for index, parameter in enumerate(layer.parameters()):
        parameter.data.copy_(draw(*parameter.shape, seed=20 + index))
    return layer


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("axis", "shape", "first"),
    [
        (1, (3, 4, 2, 5), 1),
        (2, (3, 4, 2, 5), 2),
        (-1, (3, 4, 6), 2),
        (0, (3, 4), 0),
        (1, (7, 2), 1),
    ],
)
def test_inner_product(
    axis: int, shape: tuple[int, ...], first: int, bias: bool, transpose: bool
) -> None:
    settings = f"num_output: 6 axis: {axis} bias_term: {bias} transpose: {transpose}"
    layer = inner_product(settings.lower(), shape)
    inputs = int(np.prod(shape[first:]))
    assert tuple(layer.blobs[0].shape) == ((inputs, 6) if transpose else (6, inputs))
    weight, *offset = (blob.detach().numpy() for blob in layer.blobs)
    bottom = draw(*shape)
    flat = bottom.numpy().reshape(*shape[:first], inputs)
    expected = flat @ (weight if transpose else weight.T) + sum(offset)
    np.testing.assert_allclose(run(layer, bottom)[0].detach(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "settings", ["num_output: 4", "num_output: 4 transpose: true axis: 2 bias_term: false"]
)
def test_gradients(settings: str) -> None:
    check_gradients(inner_product(settings, (3, 2, 5)), draw(3, 2, 5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "inner_product_param.num_output: must be given and positive"),
        (
            "num_output: 3 axis: 2",
            "inner_product_param.axis: axis 2 is out of range for a blob with",
        ),
    ],
)
def test_wrong_settings(settings: str, message: str) -> None:
    assert message in refused(f"type: 'InnerProduct' inner_product_param {{ {settings} }}", (3, 4))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("axis", "shape"), [(1, (3, 2, 5)), (2, (3, 2, 5))])
def test_large_weights(
    axis: int, shape: tuple[int, ...], transpose: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers, and what the mask makes of the weight is gone before its gradient comes."""
    settings = f"num_output: 4 axis: {axis} transpose: {transpose}".lower()
    text = f"type: 'InnerProduct' inner_product_param {{ {settings} weight_filler {{ std: 1"
    text += " type: 'gaussian' } bias_filler { type: 'uniform' } }"
    layer = make_layer(text, shape)
    assert isinstance(layer, InnerProduct)
    layer.mask_blobs()[0].copy_(draw(*layer.blobs[0].shape) > 0)
    upstream = draw(*shape[:axis], 4, seed=3).float()
    along, gone = Linear.along, []

    def look(*arguments: Any) -> Tensor:
        gone.append(torch.UntypedStorage._expired(product))
        return along(*arguments)

    monkeypatch.setattr(Linear, "along", look)
    results = []
    for least in (1 << 24, 0):
        monkeypatch.setattr(large_product, "LARGE", least)
        bottom = draw(*shape, seed=5).float().requires_grad_()
        weight, bias = layer.effective()
        product = weight.untyped_storage()._weak_ref()
        top = layer.apply_to(bottom, weight, bias)
        del weight
        results.append((top, *torch.autograd.grad(top, (bottom, *layer.blobs[:2]), upstream)))
    assert gone == [True]
    for usual, large in zip(*results, strict=True):
        torch.testing.assert_close(large, usual)


@pytest.mark.parametrize("transpose", [False, True])
def test_large_weights_have_second_derivatives(transpose: bool) -> None:
    weight = draw(5, 4) if transpose else draw(4, 5)
    given = [value.requires_grad_() for value in (draw(3, 5, seed=1), weight, draw(4, seed=2))]
    assert torch.autograd.gradgradcheck(
        lambda x, weight, bias: large_product.top(x, weight, bias, Linear(transpose)), given
    )
