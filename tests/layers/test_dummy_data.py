"""DummyData: fillers and shapes per top, constants filled once."""

from __future__ import annotations

import pytest
import torch

from caffe_dns.layers import Context
from tests.layers.harness import make_layer, refused, run

START = "type: 'DummyData' dummy_data_param { "
GAUSSIAN = "data_filler { type: 'gaussian' std: 2 }"
CONSTANT = "data_filler { type: 'constant' value: 3 }"
SHAPES = "shape { dim: 2 dim: 3 } shape { dim: 50 dim: 40 }"


def test_constant_tops_stay_and_others_are_drawn_at_each_pass() -> None:
    context = Context(seed=1)
    layer = make_layer(START + CONSTANT + GAUSSIAN + SHAPES + "}", tops=2, context=context)
    constant, drawn = run(layer)
    assert torch.equal(constant, torch.full((2, 3), 3.0))
    assert drawn.std().item() == pytest.approx(2, rel=0.1)
    context.passes += 1
    again, others = run(layer)
    assert again is constant
    assert not torch.equal(others, drawn)


def test_tops_of_one_filler_differ() -> None:
    layer = make_layer(START + GAUSSIAN + "shape { dim: 5 dim: 7 } }", tops=2)
    first, second = run(layer)
    assert not torch.equal(first, second)


def test_no_filler_is_zero() -> None:
    for top in run(make_layer(START + SHAPES + "}", tops=2)):
        assert not top.any()


def test_the_four_old_fields() -> None:
    text = START + "num: 2 channels: 3 channels: 4 height: 5 width: 6 }"
    assert [top.shape for top in run(make_layer(text, tops=2))] == [(2, 3, 5, 6), (2, 4, 5, 6)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "dummy_data_param.shape: is given 0 times for 3 top(s)"),
        (SHAPES, "dummy_data_param.shape: is given 2 times"),
        (SHAPES + "num: 1", "is given together with num"),
        ("num: 1 channels: 1 height: 1", "dummy_data_param.width: is given 0 times"),
        (CONSTANT * 2 + "shape { dim: 1 }", "dummy_data_param.data_filler: is given 2 times"),
    ],
)
def test_wrong_fields(fields: str, message: str) -> None:
    assert message in refused(START + fields + "}", tops=3)
