"""Which nets a solver definition names, in what states, and with which weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.solver.nets import build_test_nets, build_train_net
from caffe_dns.weights import save_weights
from tests.nets import input_layer, ip, layer, recorded_log

TEXT = input_layer(data=(2, 3)) + ip("a", "data")


def staged(*names: str) -> str:
    """A net with a Silence layer for each stage or phase of these names."""
    text = TEXT
    for name in names:
        rule = f"phase: {name}" if name.isupper() else f"stage: '{name}'"
        if name.isdigit():
            rule = f"min_level: {name}"
        text += layer(f"is_{name}", "Silence", "data", "", f"include {{ {rule} }}")
    return text


def parse(text: str) -> SolverParameter:
    param: SolverParameter = parse_text(text, SolverParameter).message
    return param


def build(text: str) -> tuple[Net, list[Net]]:
    param = parse(text)
    with log.silenced:
        contexts = [Context(surgery=False) for _ in param.test_iter]
        return build_train_net(param, Context(surgery=False)), build_test_nets(param, contexts)


def marks(net: Net) -> list[str]:
    """What `staged` put into a net for its state."""
    names = [step.layer.name for step in net.steps]
    return [name.removeprefix("is_") for name in names if name.startswith("is_")]


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A file with a net for every state."""
    path = tmp_path / "net.prototxt"
    path.write_text(staged("TRAIN", "TEST", "x", "y", "2"))
    return str(path)


# Where nets come from -----------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["net", "train_net", "net_param", "train_net_param"])
def test_the_training_net(field: str, file: str) -> None:
    given = f"{{ {Path(file).read_text()} }}" if field.endswith("param") else f": '{file}'"
    net, tests = build(f"{field} {given}")
    assert marks(net) == ["TRAIN"]
    assert tests == []


@pytest.mark.parametrize(
    "fields", ["", "net: 'a' train_net: 'b'", "net_param { } train_net_param { }"]
)
def test_exactly_one_training_net(fields: str) -> None:
    with pytest.raises(CaffeError, match="must be given by exactly one of net, net_param, train_n"):
        build(fields)


def test_test_nets_in_caffes_order(file: str, tmp_path: Path) -> None:
    other = tmp_path / "other.prototxt"
    other.write_text("name: 'file' " + TEXT)
    inline = f"test_net_param {{ name: 'inline' {TEXT} }}"
    text = f"net: '{file}' test_net: '{other}' {inline} test_interval: 1"
    with recorded_log() as messages:
        param = parse(text + " test_iter: 1" * 4)
        build_train_net(param, Context())
        nets = build_test_nets(param, [Context() for _ in range(4)])
    assert [net.name for net in nets] == ["inline", "file", "", ""]
    assert [message for message in messages if message.startswith("Creating t")] == [
        f"Creating training net from net file: {file}",
        "Creating test net (#0) specified by test_net_param",
        f"Creating test net (#1) specified by test_net file: {other}",
        f"Creating test net (#2) specified by net file: {file}",
        f"Creating test net (#3) specified by net file: {file}",
    ]
    assert marks(nets[2]) == ["TEST"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("train_net: 'F' test_iter: 1", "test_iter: given 1 time(s) for 0 test net(s)"),
        ("train_net: 'F' test_net: 'F'", "test_iter: given 0 time(s) for 1 test net(s)"),
        ("net: 'F' test_net: 'F' test_net: 'F' test_iter: 1", "test_iter: given 1 time(s) for 2"),
        (
            "net: 'F' test_iter: 1 test_state { } test_state { }",
            "test_state: given 2 time(s) for 1",
        ),
        ("net: 'F' test_iter: 1", "test_interval: must be positive, as there is a test_iter"),
        ("net: 'F' test_iter: -1 test_interval: 1", "test_iter: must not be negative"),
        ("net: 'gone' test_iter: 1 test_interval: 1", "gone: there is no such file"),
        ("net: '.' test_iter: 1 test_interval: 1", "net: .: is a directory, not a file"),
    ],
)
def test_wrong_definitions(fields: str, message: str, file: str) -> None:
    with pytest.raises(CaffeError) as caught:
        build(fields.replace("'F'", f"'{file}'"))
    assert message in str(caught.value)


def test_inline_nets_of_old_kinds_are_upgraded() -> None:
    old = "input: 'data' input_dim: 2 input_dim: 3 input_dim: 1 input_dim: 1"
    old += " layers { name: 'r' type: RELU bottom: 'data' top: 'r' }"
    net, tests = build(f"net_param {{ {old} }} test_iter: 1 test_interval: 1")
    for built in (net, *tests):
        assert [step.layer.type for step in built.steps] == ["Input", "ReLU"]


# States -------------------------------------------------------------------------------------------


def test_states_of_the_solver_come_last(file: str) -> None:
    text = f"net: '{file}' test_interval: 1 test_iter: 1 test_iter: 1 "
    text += "train_state { stage: 'x' level: 3 } "
    text += "test_state { stage: 'y' } test_state { phase: TRAIN stage: 'x' stage: 'y' }"
    net, tests = build(text)
    assert marks(net) == ["TRAIN", "x", "2"]
    assert marks(tests[0]) == ["TEST", "y"]
    assert marks(tests[1]) == ["TRAIN", "x", "y"]


def test_the_nets_own_state_comes_before_the_phase(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(
        "state { phase: TEST stage: 'x' level: 2 } " + staged("TRAIN", "TEST", "x", "2")
    )
    net, tests = build(f"net: '{path}' train_state {{ level: 1 }} test_iter: 1 test_interval: 1")
    assert marks(net) == ["TEST", "x"]
    assert marks(tests[0]) == ["TEST", "x", "2"]


# Weights ------------------------------------------------------------------------------------------


def test_weights_go_into_every_net(file: str, tmp_path: Path) -> None:
    source, _ = build(f"net: '{file}'")
    models = []
    for index in range(3):
        for blob in source.params["a"]:
            blob.data.fill_(index + 1)
        models.append(f"{tmp_path}/{index}.caffemodel")
        save_weights(source, models[-1])
    text = f"net: '{file}' test_iter: 1 test_interval: 1 "
    text += f"weights: '{models[0]}, {models[2]}' weights: '{models[1]}'"
    with recorded_log() as messages:
        param = parse(text)
        nets = [build_train_net(param, Context(surgery=False))]
        nets += build_test_nets(param, [Context(surgery=False)])
    for net in nets:
        assert all((blob == 2).all() for blob in net.params["a"])
    expected = [f"Finetuning from {models[index]}" for index in (0, 2, 1)]
    assert [message for message in messages if message.startswith("Finetuning")] == expected * 2


def test_errors_name_the_file(file: str) -> None:
    Path(file).write_text("name: 'n'\n" + TEXT.replace("num_output: 5", ""))
    with pytest.raises(CaffeError) as caught:
        build(f"net: '{file}'")
    assert str(caught.value).startswith(
        f"{file}:3: layer 'a': inner_product_param.num_output: must"
    )
