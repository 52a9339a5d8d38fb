"""The Parameter layer: a blob of zeros that learns through its readers."""

from __future__ import annotations

import torch

from tests.layers.harness import make_layer, refused, run


def test_blob_is_the_top_and_learns() -> None:
    layer = make_layer("type: 'Parameter' parameter_param { shape { dim: 2 dim: 3 } }")
    (top,) = run(layer)
    assert torch.equal(top, torch.zeros(2, 3))
    (top * torch.arange(6.0).reshape(2, 3)).sum().backward()
    assert layer.blobs[0].grad is not None
    assert layer.blobs[0].grad.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]


def test_first_values_of_happynear() -> None:
    text = "type: 'Parameter' parameter_param { shape { dim: 2 } blob_filler { value: 3 } }"
    assert make_layer(text).blobs[0].tolist() == [3, 3]


def test_without_a_shape_it_is_one_number() -> None:
    assert make_layer("type: 'Parameter'").blobs[0].shape == ()


def test_wrong_parameter() -> None:
    message = refused("type: 'Parameter' parameter_param { shape { dim: -1 } }")
    assert "parameter_param.shape: has a negative extent" in message
    assert "takes 0 bottom" in refused("type: 'Parameter'", (2,))
