"""Fields of forks that are read as if they were not there."""

from __future__ import annotations

import pytest
from google.protobuf.message import Message

from caffe_dns.errors import CaffeError
from caffe_dns.proto import caffe_pb2
from caffe_dns.proto.caffe_pb2 import (
    NetParameter,
    ParamSpec,
    PoolingParameter,
    SolverParameter,
)
from caffe_dns.proto.idle_fields import _FIELDS, Idle
from caffe_dns.proto.known_forks import forks_with_field
from caffe_dns.proto.text import parse_text
from tests.nets import recorded_log


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("default_forward_type: FLOAT global_grad_scale: 1000. name: 'a'", NetParameter),
        ("engine: 'MKL2017'; reduce_buckets: 3, name: 'a'", NetParameter),
        ("name: 'a' layer { forward_math: FLOAT debug: true }", NetParameter),
        ("layer { engine: \"MKLDNN:DLA\" } name: 'a'", NetParameter),
        ("name: 'a' layer { cudnn_math_override: 1 }", NetParameter),
        ("base_lr: 1 breadth_decay: 0.0 force_type: 'Linear'", SolverParameter),
        ("larc_turbo: false base_lr: 1 momentum_policy: 'fixed'", SolverParameter),
        ("local_lr_auto: f local_gw_ratio: 0.005 base_lr: 1 test_offset: -0", SolverParameter),
    ],
)
def test_what_changes_nothing(text: str, kind: type[Message]) -> None:
    with recorded_log() as messages:
        found = parse_text(text, kind).message
    assert not messages
    assert found in (
        NetParameter(name="a"),
        NetParameter(name="a", layer=[{}]),
        SolverParameter(base_lr=1),
    )


def test_engines_of_forks_are_the_default() -> None:
    text = "pool: AVE engine: MKL2017 avg_include_pad: true"
    param = parse_text(text, PoolingParameter).message
    assert param == PoolingParameter(pool="AVE", engine="DEFAULT")
    with pytest.raises(CaffeError, match="engine"):
        parse_text("engine: MKL2018", PoolingParameter)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "layer { name: 'a'\nloss_param { label_smoothing: 0.5 } }",
            "line 2: layer.loss_param.label_smoothing: 'label_smoothing' of NVCaffe and Intel "
            "Caffe is not supported but for 0, with which it changes nothing (column 14)",
        ),
        (
            "layer { pooling_param { torch_pooling: true } }",
            "line 1: layer.pooling_param.torch_pooling: 'torch_pooling' of NVCaffe is not "
            "supported but for false, with which it changes nothing (column 25)",
        ),
        ("engine { }", "line 1: engine: expected a value after 'engine', found '{' (column 8)"),
    ],
)
def test_what_changes_something(text: str, message: str) -> None:
    with pytest.raises(CaffeError) as error:
        parse_text(text, NetParameter)
    assert str(error.value) == message


def test_types_are_left_to_the_precision_and_said_once() -> None:
    layer = "layer { forward_type: FLOAT16 }\n"
    text = f"default_forward_type: FLOAT16\n{layer}{layer}"
    with recorded_log() as messages:
        parse_text(text, NetParameter)
    assert messages == [
        "default_forward_type: FLOAT16 (line 1) is left to --precision",
        "layer.forward_type: FLOAT16 (line 2) is left to --precision",
    ]


def test_factors_of_decays_that_no_solver_has() -> None:
    text = "lr_mult: 2 force_mult: 1.0 kernel_shape_decay_mult: 1 breadth_decay_mult: 0"
    text += " block_group_lasso { xdimen: 2 ydimen: 3 block_decay_mult: 1 }"
    assert parse_text(text, ParamSpec).message == ParamSpec(lr_mult=2)
    with pytest.raises(CaffeError, match="'breadth_decay' of wenwei202's SSL is not supported"):
        parse_text("base_lr: 1 breadth_decay: 0.001", SolverParameter)


def test_whole_numbers_are_left_to_the_precision() -> None:
    layer = "layer { quantization_param { bw_params: 8 scale_in: [1, 2] } name: 'b' }\n"
    with recorded_log() as messages:
        found = parse_text(layer * 2, NetParameter).message
    assert found == NetParameter(layer=[{"name": "b"}] * 2)
    assert messages == ["layer.quantization_param: its settings (line 1) is left to --precision"]


def test_every_idle_field_is_one_of_a_fork_and_not_ours() -> None:
    for message, fields in _FIELDS.items():
        ours = caffe_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name
        for field in fields:
            assert field not in ours
            assert forks_with_field(message, field)


def test_numbers_and_words() -> None:
    assert Idle((0,)).takes("0.0")
    assert not Idle((0,)).takes("false")
    assert not Idle(("FLOAT",)).takes("FLOAT16")
