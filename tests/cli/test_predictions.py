"""How many predictions stay what they were."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from caffe_dns.cli.predictions import Predictions
from caffe_dns.net import Net
from tests.nets import make_net

INPUTS = """
layer { name: "data" type: "Input" top: "score" top: "label"
  input_param { shape { dim: 3 dim: 2 } shape { dim: 3 } } }
"""
ACCURACY = """
layer { name: "accuracy" type: "Accuracy" bottom: "score" bottom: "label" top: "accuracy" }
"""
#: In the place of the scores, the others: of two classes, the second wins where the first did.
NEGATED = """
layer { name: "negated" type: "Power" bottom: "score" top: "score" power_param { scale: -1 } }
"""


def give(net: Net) -> Net:
    return net


def test_counts_where_the_largest_score_is_another() -> None:
    net, other = make_net(INPUTS + ACCURACY), make_net(INPUTS + NEGATED + ACCURACY)
    data = {"score": torch.tensor([[1.0, 2.0], [4.0, 3.0], [5.0, 5.0]]), "label": torch.zeros(3)}
    for before, same in ((net, 3), (other, 1)):  # a draw stays one
        predictions = Predictions(partial(give, before), net)
        predictions.compare(data, net(data))
        assert predictions.lines() == [f"Predictions: {same} of 3 are those of the given net"]
        assert predictions.result() == {"same": same, "count": 3}


def test_finds_data_and_scores_by_the_layers() -> None:
    """Though the data are overwritten, and blobs of the two nets have other names."""
    definition = INPUTS + NEGATED + ACCURACY + 'layer { name: "s" type: "Silence" bottom: "score" }'
    before, after = make_net(definition.replace('"negated"', '"other"')), make_net(definition)
    data = {"score": torch.tensor([[1.0, 2.0], [4.0, 3.0], [5.0, 5.0]]), "label": torch.zeros(3)}
    predictions = Predictions(lambda: before, after)
    predictions.compare(data, after(data))
    assert predictions.lines() == ["Predictions: 3 of 3 are those of the given net"]


def test_says_nothing_of_a_net_without_accuracy() -> None:
    net = make_net(INPUTS)
    predictions = Predictions(lambda: pytest.fail("builds a net for nothing"), net)
    predictions.compare({}, {})
    assert predictions.lines() == []
    assert predictions.result() is None
