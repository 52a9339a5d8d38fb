"""Embed: the golden case's vectors, and gradients added up over repeated indices."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from tests.layers.harness import make_layer, refused, run
from tests.oracle import run_layer_case

FILLED = "weight_filler { type: 'gaussian' } bias_filler { type: 'gaussian' }"


def test_golden_case() -> None:
    run_layer_case("embed")


@pytest.mark.parametrize("bias_term", [True, False])
def test_gradients_add_up(bias_term: bool) -> None:
    settings = f"num_output: 4 input_dim: 6 bias_term: {str(bias_term).lower()} {FILLED}"
    layer = make_layer(f"type: 'Embed' embed_param {{ {settings} }}", (3, 2)).double()
    assert [tuple(blob.shape) for blob in layer.blobs] == [(6, 4), (4,)][: 1 + bias_term]
    indices = torch.tensor([[4, 1], [5, 1], [0, 1]], dtype=torch.float64)
    top = run(layer, indices)[0]
    gradient = torch.arange(24.0, dtype=torch.float64).reshape(3, 2, 4)
    top.backward(gradient)
    one_hot = np.eye(6)[indices.int().numpy()]
    weight, *bias = (blob.detach().numpy() for blob in layer.blobs)
    np.testing.assert_allclose(top.detach(), one_hot @ weight + sum(bias), rtol=1e-12)
    expected = [np.einsum("abk,abn->kn", one_hot, gradient.numpy()), gradient.numpy().sum((0, 1))]
    for blob, wanted in zip(layer.blobs, expected, strict=False):
        assert blob.grad is not None
        np.testing.assert_allclose(blob.grad, wanted, rtol=1e-12)


@pytest.mark.parametrize("index", [-1.0, 6.0])
def test_index_out_of_range(index: float) -> None:
    layer = make_layer("type: 'Embed' embed_param { num_output: 4 input_dim: 6 }", (2,))
    with pytest.raises(CaffeError, match=f"index {index:.0f} is out of range; 0 to 5"):
        layer(torch.tensor([0.0, index]))


@pytest.mark.parametrize("missing", ["num_output", "input_dim"])
def test_missing_extent(missing: str) -> None:
    given = ({"num_output", "input_dim"} - {missing}).pop()
    message = refused(f"type: 'Embed' embed_param {{ {given}: 3 }}", (2,))
    assert f"embed_param.{missing}: must be given" in message
