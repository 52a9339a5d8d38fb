"""`dns upgrade_net_proto_text`, `..._binary` and `upgrade_solver_proto_text`, as Caffe's tools."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import read_text, write_binary
from tests.cli.harness import complaint, run, run_well

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_net_and_log_are_caffes(version: str, tmp_path: Path, capfd: Capture) -> None:
    target = str(tmp_path / "new.prototxt")
    result = run_well(["upgrade_net_proto_text", f"legacy/{version}.prototxt", target], capfd)
    upgraded = f"legacy/{version}_upgraded.prototxt"
    assert Path(target).read_text() == Path(upgraded).read_text()
    log = Path(f"logs/upgrade_{version}.log").read_text().splitlines()
    theirs = [line.partition("] ")[2].replace(upgraded, target) for line in log]
    assert result.messages == theirs


def test_solver_is_caffes(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "new.prototxt"
    source = "legacy/solver_enum.prototxt"
    result = run_well(["upgrade_solver_proto_text", source, str(target)], capfd)
    assert target.read_text() == Path("legacy/solver_enum_upgraded.prototxt").read_text()
    assert result.messages[-1] == f"Wrote upgraded SolverParameter text proto to {target}"


def test_weights_are_upgraded_as_text_is(tmp_path: Path, capfd: Capture) -> None:
    source, target = tmp_path / "old.caffemodel", tmp_path / "new.caffemodel"
    old = read_text("legacy/v1.prototxt", NetParameter).message
    old.layers[1].blobs.add(num=1, channels=1, height=1, width=2, data=[1.5, 2.5])
    write_binary(source, old)
    result = run_well(["upgrade_net_proto_binary", str(source), str(target)], capfd)
    assert result.messages[-1] == f"Wrote upgraded NetParameter binary proto to {target}"
    new = NetParameter.FromString(target.read_bytes())
    [blob] = [blob for layer in new.layer for blob in layer.blobs]
    assert list(blob.data) == [1.5, 2.5]
    for layer in new.layer:
        layer.ClearField("blobs")
    assert new == read_text("legacy/v1_upgraded.prototxt", NetParameter).message


@pytest.mark.parametrize(
    ("action", "source"),
    [
        ("upgrade_net_proto_text", "legacy/v1_upgraded.prototxt"),
        ("upgrade_net_proto_binary", "runs/sgd_inv/init.caffemodel"),
        ("upgrade_solver_proto_text", "legacy/solver_enum_upgraded.prototxt"),
    ],
)
def test_new_files_are_copied(action: str, source: str, tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "new"
    result = run_well([action, source, str(target)], capfd)
    assert result.messages[0] == f"File already in latest proto format: {source}"
    assert target.read_bytes() == Path(source).read_bytes()


def test_settings_left_behind_show_in_the_exit_code(tmp_path: Path, capfd: Capture) -> None:
    source, target = tmp_path / "old.prototxt", tmp_path / "new.prototxt"
    source.write_text('layers { layer { name: "r" type: "relu" num_output: 3 } }')
    result = run(["upgrade_net_proto_text", str(source), str(target)], capfd)
    assert result.code == 1
    assert result.complaints == []
    assert "Encountered error(s) while upgrading prototxt; see details above." in result.messages
    assert 'type: "ReLU"' in target.read_text()


@pytest.mark.parametrize(
    ("action", "source", "word"),
    [
        ("upgrade_net_proto_text", "gone.prototxt", "gone.prototxt"),
        ("upgrade_net_proto_text", "legacy/solver_enum.prototxt", "solver_enum.prototxt:1"),
        ("upgrade_net_proto_text", "runs/sgd_inv/init.caffemodel", "binary"),
        ("upgrade_net_proto_binary", "gone.caffemodel", "gone.caffemodel"),
        ("upgrade_net_proto_binary", "legacy/v1.prototxt", "text"),
        ("upgrade_solver_proto_text", "legacy/v1.prototxt", "v1.prototxt:1"),
        ("upgrade_solver_proto_text", "legacy", "directory"),
    ],
)
def test_wrong_input(action: str, source: str, word: str, tmp_path: Path, capfd: Capture) -> None:
    assert word in complaint([action, source, str(tmp_path / "new")], capfd)
    assert list(tmp_path.iterdir()) == []


def test_both_files_are_needed(capfd: Capture) -> None:
    assert "NET_PROTO_FILE_OUT" in complaint(["upgrade_net_proto_text", "a"], capfd)
