"""State rules and splits, against what `Net::FilterNet` and `InsertSplits` do."""

from __future__ import annotations

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.net.definition import (
    filter_layers,
    insert_splits,
    meets_rule,
    with_state,
    with_statistics_of,
)
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, LayerParameter, NetState, NetStateRule
from caffe_dns.proto.text import parse_text
from tests.nets import input_layer, parse_net, recorded_log

# State rules --------------------------------------------------------------------------------------

STATE = "phase: TRAIN level: 2 stage: 'a' stage: 'b'"


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("", None),
        ("phase: TRAIN", None),
        ("phase: TEST", "The NetState phase (0) differed from the phase (1) specified by a rule"),
        ("min_level: 2", None),
        ("min_level: 3", "The NetState level (2) is above the min_level (3) specified by a rule"),
        ("max_level: 2", None),
        ("max_level: 1", "The NetState level (2) is above the max_level (1) specified by a rule"),
        ("min_level: 1 max_level: 3", None),
        ("stage: 'a'", None),
        ("stage: 'b' stage: 'a'", None),
        ("stage: 'a' stage: 'c'", "The NetState did not contain stage 'c' specified by a rule"),
        ("not_stage: 'c'", None),
        ("not_stage: 'c' not_stage: 'b'", "The NetState contained a not_stage 'b' specified by a"),
        ("stage: 'a' not_stage: 'a'", "The NetState contained a not_stage 'a' specified by a rule"),
        ("phase: TEST stage: 'c'", "The NetState phase (0) differed from the phase (1) specified"),
    ],
)
def test_rules(rule: str, complaint: str | None) -> None:
    state = parse_text(STATE, NetState).message
    with recorded_log() as messages:
        met = meets_rule(state, parse_text(rule, NetStateRule).message, "x")
    assert met == (complaint is None)
    assert [m.startswith(complaint or "?") for m in messages] == [True] * (not met)
    assert all(m.endswith("specified by a rule in layer x") for m in messages)


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        ("", True),
        ("include { phase: TEST } include { stage: 'a' }", True),
        ("include { phase: TEST } include { stage: 'c' }", False),
        ("exclude { phase: TEST } exclude { stage: 'a' }", False),
        ("exclude { phase: TEST } exclude { stage: 'c' }", True),
    ],
)
def test_any_matching_rule_decides(rules: str, kept: bool) -> None:
    param = parse_net(f"state {{ {STATE} }} layer {{ name: 'x' {rules} }} layer {{ name: 'y' }}")
    filtered, indices = filter_layers(param)
    assert [layer.name for layer in filtered.layer] == ["x", "y"][not kept :]
    assert indices == [0, 1][not kept :]
    assert len(param.layer) == 2


def test_include_and_exclude_together_are_refused() -> None:
    param = parse_net("layer { name: 'x' include { phase: TRAIN } exclude { phase: TEST } }")
    with pytest.raises(CaffeError, match="layer 'x': include: has both include and exclude rules"):
        filter_layers(param)


def test_level_zero_and_the_empty_stage_are_levels_and_stages() -> None:
    # What `-level` and `-stage` give when they are not given.
    state = parse_text("level: 0 stage: ''", NetState).message
    assert meets_rule(state, NetStateRule(max_level=0), "x")
    assert not meets_rule(state, NetStateRule(min_level=1), "x")
    assert meets_rule(state, NetStateRule(stage=[""]), "x")


def test_statistics_of_all_batch_norms() -> None:
    layers = (
        "layer { type: 'BatchNorm' batch_norm_param { stats_batch_size: 4 eps: 1 } } "
        "layer { type: 'BatchNorm' } layer { type: 'ReLU' }"
    )
    param = parse_net(layers)
    assert with_statistics_of(param) == param
    first, second, other = with_statistics_of(parse_net(f"bn_stats_batch_size: 8 {layers}")).layer
    assert first.batch_norm_param.stats_batch_size == 8 and first.batch_norm_param.eps == 1
    assert second.batch_norm_param.stats_batch_size == 8
    assert other == param.layer[2]


def test_with_state_adds_to_the_definitions_own() -> None:
    param = parse_net("state { phase: TEST level: 5 stage: 'own' }")
    state = with_state(param, TRAIN, 1, ["more"]).state
    assert (state.phase, state.level, list(state.stage)) == (TRAIN, 1, ["own", "more"])
    assert param.state.phase == TEST


# Splits -------------------------------------------------------------------------------------------


def layer(name: str, bottoms: str = "", tops: str = "", more: str = "") -> str:
    """A layer that reads and makes blobs of one letter each."""
    blobs = "".join(f"bottom: '{b}' " for b in bottoms) + "".join(f"top: '{t}' " for t in tops)
    return f"layer {{ name: '{name}' type: 'T' {blobs} {more} }}\n"


def split(text: str) -> list[tuple[str, list[str], list[str], list[float]]]:
    """Name, bottoms, tops and loss weights of all layers after the pass."""
    return [
        (layer.name, list(layer.bottom), list(layer.top), list(layer.loss_weight))
        for layer in insert_splits(parse_net(text)).layer
    ]


def test_a_chain_stays_as_it_is() -> None:
    text = layer("data", "", "dl") + layer("ip", "d", "p") + layer("loss", "pl", "o")
    param = parse_net(text)
    assert insert_splits(param) == param


def test_readers_get_copies_in_their_order() -> None:
    text = layer("data", "", "dl") + layer("a", "l", "a") + layer("b", "dl", "b")
    text += layer("c", "l", "c")
    names = [f"l_data_1_split_{i}" for i in range(3)]
    assert split(text) == [
        ("data", [], ["d", "l"], []),
        ("l_data_1_split", ["l"], names, []),
        ("a", names[:1], ["a"], []),
        ("b", ["d", names[1]], ["b"], []),
        ("c", names[2:], ["c"], []),
    ]


def test_one_reader_may_read_twice() -> None:
    names = ["d_data_0_split_0", "d_data_0_split_1"]
    assert split(layer("data", "", "d") + layer("sum", "dd", "s"))[1:] == [
        ("d_data_0_split", ["d"], names, []),
        ("sum", names, ["s"], []),
    ]


def test_in_place_layers_make_blobs_of_their_own() -> None:
    # The blob is read once before the in-place layer and twice after it.
    text = layer("data", "", "d") + layer("ip", "d", "p") + layer("relu", "p", "p")
    text += layer("a", "p", "a") + layer("b", "p", "b")
    names = ["p_relu_0_split_0", "p_relu_0_split_1"]
    assert split(text)[1:] == [
        ("ip", ["d"], ["p"], []),
        ("relu", ["p"], ["p"], []),
        ("p_relu_0_split", ["p"], names, []),
        ("a", names[:1], ["a"], []),
        ("b", names[1:], ["b"], []),
    ]


def test_several_tops_of_a_layer_are_split_in_order() -> None:
    text = layer("data", "", "dl") + layer("a", "dl", "a") + layer("b", "ld", "b")
    assert [name for name, *_ in split(text)] == [
        "data",
        "d_data_0_split",
        "l_data_1_split",
        "a",
        "b",
    ]


def test_a_loss_weight_reads_too_and_moves_to_the_first_copy() -> None:
    text = layer("data", "", "d") + layer("e", "d", "e", "loss_weight: 0.5") + layer("f", "e", "f")
    names = ["e_e_0_split_0", "e_e_0_split_1"]
    assert split(text)[1:] == [
        ("e", ["d"], ["e"], []),
        ("e_e_0_split", ["e"], names, [0.5, 0.0]),
        ("f", names[1:], ["f"], []),
    ]


def test_a_loss_weight_of_zero_and_an_unread_loss_need_no_split() -> None:
    text = layer("data", "", "d") + layer("e", "d", "e", "loss_weight: 0") + layer("f", "e", "f")
    assert len(split(text)) == 3
    text = layer("data", "", "dl", "loss_weight: 0 loss_weight: 2") + layer("e", "d", "e")
    assert split(text)[0] == ("data", [], ["d", "l"], [0.0, 2.0])


def test_more_loss_weights_than_tops_are_left_to_the_layer() -> None:
    text = layer("data", "", "d", "loss_weight: 1 loss_weight: 1") + layer("e", "d", "e")
    assert [name for name, *_ in split(text)] == ["data", "d_data_0_split", "e"]


def test_unknown_bottom() -> None:
    text = layer("data", "", "d") + layer("ip", "dx", "p")
    with pytest.raises(CaffeError, match=r"Unknown bottom blob 'x' \(layer 'ip', bottom index 1\)"):
        insert_splits(parse_net(text))


def test_a_blob_that_is_made_later_is_unknown() -> None:
    with pytest.raises(CaffeError, match="Unknown bottom blob 'p'"):
        insert_splits(parse_net(layer("a", "p", "a") + layer("b", "", "p")))


def test_input_tops_are_split_like_others() -> None:
    text = input_layer(d=(2, 3)) + layer("a", "d", "a") + layer("b", "d", "b")
    assert split(text)[1][0] == "d_in_0_split"
    assert isinstance(insert_splits(parse_net(text)).layer[1], LayerParameter)
