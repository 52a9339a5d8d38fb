"""What `prune` takes, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import caffe_dns
from caffe_dns import CaffeError
from caffe_dns.layers.base import Context
from tests.nets import DATA, ip, make_net
from tests.surgery.modules.models import tiny, tiny_batch, train

NUMBER = "must be a number, or one for each name of a layer, not"
ORDER = (
    "0, start, end and steps must come in this order, the last one later than the others; they are"
)


class Kinds(nn.Module):
    """One of each module that has weights to prune, and some that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(2, 3, 3)
        self.conv2 = nn.Conv2d(2, 3, 3, groups=1, bias=False)
        self.conv3 = nn.Conv3d(2, 3, 3)
        self.up1 = nn.ConvTranspose1d(2, 3, 3)
        self.up2 = nn.ConvTranspose2d(2, 3, 3)
        self.up3 = nn.ConvTranspose3d(2, 3, 3)
        self.linear = nn.Linear(4, 5)
        self.attention = nn.MultiheadAttention(4, 2, kdim=3)
        self.norm = nn.BatchNorm2d(3)
        self.embed = nn.Embedding(7, 4)
        self.normed = weight_norm(nn.Linear(4, 4))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.rnn = nn.LSTM(4, 5)
        self.again = self.linear


def test_what_is_pruned() -> None:
    model = Kinds()
    counts = caffe_dns.prune(model, sparsity=0.5, steps=10).counts()
    assert {count.name: count.total for count in counts} == {
        "conv1": 2 * 3 * 3 + 3,
        "conv2": 2 * 3 * 9,
        "conv3": 2 * 3 * 27 + 3,
        "up1": 2 * 3 * 3 + 3,
        "up2": 2 * 3 * 9 + 3,
        "up3": 2 * 3 * 27 + 3,
        "linear": 25,
        "attention.q_proj_weight": 16,
        "attention.k_proj_weight": 12,
        "attention.v_proj_weight": 16,
        "attention.out_proj": 20,
    }
    by_deviation = caffe_dns.prune(model, sparsity=0.5, steps=10, rule="deviation").counts()
    assert [count.total for count in by_deviation if count.name == "linear"] == [20]


def test_names_of_layers_parameters_and_tied_weights() -> None:
    wanted = {"rnn.weight_hh_l0": 0.9, "embed.weight": 0.5, "again": 0.8, "frozen": 0.25}
    pruner = caffe_dns.prune(Kinds(), sparsity=wanted, steps=4, end=0)
    assert [(count.name, count.kept, count.total) for count in pruner.counts()] == [
        ("rnn.weight_hh_l0", 10, 100),
        ("embed.weight", 14, 28),
        ("linear", 5, 25),
        ("frozen", 12, 16),
    ]
    some = caffe_dns.prune(Kinds(), sparsity=0.5, steps=4, layers=["conv2", "linear.weight"])
    assert [count.name for count in some.counts()] == ["conv2", "linear"]


def test_a_bias_that_is_named_itself_is_not_pruned_twice() -> None:
    model = tiny()
    whole = model[3].bias.detach().clone()
    pruner = caffe_dns.prune(model, sparsity={"3": 0.5, "3.bias": 0.4}, steps=4, end=0)
    assert [(count.name, count.kept, count.total) for count in pruner.counts()] == [
        ("3", 96, 192),
        ("3.bias", 1, 3),
    ]
    train(model, torch.optim.SGD(model.parameters(), lr=0.0), 3, tiny_batch(0), pruner.step)
    assert torch.equal(model[3].bias, torch.where(pruner.masks()["3.bias"], whole, 0))
    for parameter, pruned in zip(pruner.weights.parameters, pruner.weights.pruned, strict=True):
        if parameter is model[3].bias:
            assert torch.equal(parameter + pruned, whole)


def test_a_net_of_caffe() -> None:
    text = DATA + ip("a", "data") + ip("b", "a", "param { name: 'w' }", outputs=5)
    text += ip("c", "b", "param { name: 'w' }", outputs=5)
    net = make_net(text, context=Context(surgery=False))
    pruner = caffe_dns.prune(net, sparsity=0.5, steps=10, end=0)
    counts = pruner.counts()
    assert [(count.name, count.total) for count in counts] == [("a", 25), ("b", 30)]
    assert sum(count.kept for count in counts) == 27
    with pytest.raises(CaffeError, match="the model has no weights that learn"):
        caffe_dns.prune(make_net(text), sparsity=0.5, steps=10)


def test_a_module_that_is_a_layer_itself() -> None:
    pruner = caffe_dns.prune(nn.Linear(10, 10), sparsity=0.5, steps=4, end=0)
    assert pruner.report().splitlines() == [
        "Kept weight: 55 of 110 parameters (50.00 %)",
        "Kept in all: 55 of 110 parameters (2.0 times smaller)",
    ]


def test_compression_counts_all_parameters() -> None:
    pruner = caffe_dns.prune(Kinds(), compression=2, steps=4, end=0)
    total = sum(parameter.numel() for parameter in Kinds().parameters())
    assert pruner.report().splitlines()[-1] == (
        f"Kept in all: {total // 2} of {total} parameters (2.0 times smaller)"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give one of compression, sparsity, threshold, c_rate, not none of them"),
        (
            {"compression": 4, "c_rate": 1},
            "give one of compression, sparsity, threshold, c_rate, not compression and c_rate",
        ),
        ({"compression": 0.5}, "compression: must be at least 1, not 0.5"),
        (
            {"compression": 1000},
            "compression: 1000 times smaller is out of reach: of 271 parameters, 0 stay in any "
            "case; at most 135.5 times",
        ),
        ({"sparsity": 1}, "sparsity: must be at least 0 and below 1, but is 1"),
        ({"sparsity": {"3": 2}}, "sparsity: must be at least 0 and below 1, but is 2"),
        (
            {"sparsity": {"3": 0.5, "3.weight": 0.5}},
            "two of the names are of the same weight",
        ),
        (
            {"threshold": {"3.weihgt": 1}},
            "the model has no weight '3.weihgt' (did you mean '3.weight'?); there are: 0, 3",
        ),
        ({"sparsity": {"3": 0.5}, "layers": ["3"]}, "layers: sparsity names them already"),
        ({"sparsity": 0.5, "rule": "l1"}, "rule: 'l1' is unknown; known: magnitude, deviation"),
        ({"sparsity": 0.5, "interval": 0}, "interval: must be at least 1, not 0"),
        ({"sparsity": 0.5, "start": -1}, f"{ORDER} 0, -1, 5 and 10"),
        ({"sparsity": 0.5, "start": 6}, f"{ORDER} 0, 6, 5 and 10"),
        ({"sparsity": 0.5, "end": 10}, f"{ORDER} 0, 0, 10 and 10"),
        ({"sparsity": 0.5, "steepness": 0}, "steepness: must be above 0, not 0"),
        ({"sparsity": 0.5, "steps": 0}, f"{ORDER} 0, 0, 0 and 0"),
        (
            {"sparsity": 0.5, "steps": 10.5},
            "steps: must be a whole number below 2147483648, not 10.5",
        ),
        (
            {"sparsity": 0.5, "end": float("nan")},
            "end: must be a whole number below 2147483648, not nan",
        ),
        (
            {"sparsity": 0.5, "steps": 1 << 31},
            "steps: must be a whole number below 2147483648, not 2147483648",
        ),
        ({"sparsity": [0.5]}, f"sparsity: {NUMBER} [0.5]"),
        ({"compression": {"3": "x"}}, f"compression: {NUMBER} 'x'"),
        (
            {"sparsity": 0.5, "layers": "3"},
            "layers: must be a list of names; for one layer it is ['3']",
        ),
        (
            {"sparsity": 0.5, "layers": [3]},
            "layers: must be names, as of model.named_modules(), not 3",
        ),
        ({"sparsity": 0.5, "layers": []}, "layers: names nothing"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        caffe_dns.prune(tiny(), **{"steps": 10, **settings})
    assert isinstance(caught.value, CaffeError)
    assert str(caught.value) == message


def test_models_that_cannot_be_pruned() -> None:
    def refused(model: nn.Module) -> str:
        with pytest.raises(ValueError) as caught:
            caffe_dns.prune(model, sparsity=0.5, steps=10)
        return str(caught.value)

    nothing = "the model has no weights that learn in convolutions or linear layers"
    assert refused(nn.ReLU()) == nothing
    assert refused(nn.Sequential(nn.LSTM(3, 4), nn.Embedding(3, 4))) == (
        f"{nothing}; parameters of LSTM, Embedding are pruned where `layers` names them"
    )
    without = nn.Linear(3, 4)
    without.weight = nn.Parameter(torch.empty(0, 3))
    for empty in (nn.Linear(3, 4, device="meta"), without):
        assert refused(empty) == "'weight' has no values: give the model some, then prune it"
    with torch.inference_mode():
        untrainable = nn.Linear(3, 4)
    assert refused(untrainable) == (
        "'weight' was made in torch.inference_mode, and cannot be trained nor pruned"
    )
    not_a_model: Any = {}
    assert refused(not_a_model) == "what is pruned is a torch.nn.Module, not of type dict"
    assert refused(nn.Sequential(nn.Linear(2, 3), nn.LazyBatchNorm1d())) == (
        "'1.weight' has no shape yet: run the model once, then prune it"
    )
    assert refused(nn.Linear(3, 4).bfloat16()) == (
        "'weight' is of torch.bfloat16: keep the parameters in float32, in which small updates "
        "add up, and let torch.autocast round"
    )
    diverged = nn.Linear(4, 3)
    with torch.no_grad():
        diverged.bias[2] = math.nan
    assert refused(nn.Sequential(nn.Linear(3, 4), diverged)) == (
        "'1' has values that are not finite numbers"
    )
    assert refused(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3).to("meta"))) == (
        "the model lies on several devices; what is pruned must lie on one"
    )


def test_the_name_of_a_module_that_is_not_pruned_as_one() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4)), nn.LSTM(4, 2))
    for name, message in (
        ("0", "'0' is of type Sequential: name what is in it, such as '0.0', not the whole"),
        ("1", "'1' is of type LSTM: name what is in it, such as '1.weight_ih_l0', not the whole"),
    ):
        with pytest.raises(ValueError) as caught:
            caffe_dns.prune(model, sparsity=0.5, steps=10, layers=[name])
        assert str(caught.value) == message


def test_the_report_says_what_is_not_pruned() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.LSTM(4, 2), nn.LayerNorm(2))
    lines = caffe_dns.prune(model, sparsity=0.5, steps=10, end=0).report().splitlines()
    assert lines == [
        "Kept 0: 8 of 16 parameters (50.00 %)",
        "Not pruned: 64 of LSTM, 12 of LayerNorm",
        "Kept in all: 84 of 92 parameters (1.1 times smaller)",
    ]


def test_one_pruner_for_a_parameter() -> None:
    model = tiny()
    pruner = caffe_dns.prune(model, sparsity=0.5, steps=10, layers=["0"])
    with pytest.raises(ValueError) as caught:
        caffe_dns.prune(model, sparsity=0.5, steps=10)
    assert str(caught.value) == (
        "'0.weight' is being pruned by another pruner: apply() that one first"
    )
    caffe_dns.prune(model, sparsity=0.5, steps=10, layers=["3"])
    pruner.apply()
    caffe_dns.prune(model, sparsity=0.5, steps=10)


def test_a_model_that_is_moved_afterwards() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3))
    pruner = caffe_dns.prune(model, sparsity=0.5, steps=10)
    pruner.step()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with pytest.raises(
        ValueError,
        match=r"'0\.weight' lies elsewhere than it did when it was pruned: move the model to its "
        "device and memory format first, then prune it",
    ):
        pruner.step()


def test_a_pattern_along_the_inputs() -> None:
    """2 of 4 neighbours: of conv2d the channels innermost, of a transposed one the first axis."""
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.ConvTranspose2d(8, 3, 3), nn.Linear(6, 5))
    masks = caffe_dns.prune(model, sparsity=0.5, steps=10, end=0, pattern="2:4").masks()
    conv, up, linear = masks["0.weight"], masks["1.weight"], masks["2.weight"]
    groups = [conv.permute(0, 2, 3, 1).reshape(-1, 4), up.permute(1, 2, 3, 0).reshape(-1, 4)]
    for group in (*groups, linear[:, :4], linear[:, 4:]):
        assert 0 < group.sum(1).max() <= 2


def test_weights_that_take_no_pattern() -> None:
    model = nn.ConvTranspose2d(4, 4, 3, groups=2)
    with pytest.raises(CaffeError, match="no axis of its weight has the inputs alone"):
        caffe_dns.prune(model, sparsity=0.5, steps=10, pattern="1x4")


def test_filters_are_for_nets_of_caffe() -> None:
    """What reads the outputs of a module, nobody knows."""
    with pytest.raises(CaffeError, match="pattern: filters are for nets of Caffe's layers"):
        caffe_dns.prune(nn.Linear(4, 4), sparsity=0.5, steps=10, pattern="filter")
