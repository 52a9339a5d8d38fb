"""What `dns train` with surgery leaves at the end: the net without masks."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest

from caffe_dns import load_net
from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import NetParameter
from tests.cli.harness import run_well
from tests.solver.harness import SETTINGS, small_net

Capture = pytest.CaptureFixture[str]

SOLVER = SETTINGS.replace("snapshot_after_train: false", "test_iter: 2 test_interval: 6")


def write_solver(folder: Path, net: str, settings: str = "") -> list[str]:
    (folder / "net.prototxt").write_text(net)
    path = folder / "solver.prototxt"
    path.write_text(
        f'{SOLVER} net: "{folder}/net.prototxt" snapshot_prefix: "{folder}/snap" {settings}'
    )
    return ["train", "--solver", str(path)]


def arrays(file: Path) -> dict[str, list[np.ndarray]]:
    param = NetParameter.FromString(file.read_bytes())
    return {la.name: [blob_to_array(blob) for blob in la.blobs] for la in param.layer if la.blobs}


PRUNING = ["--target-sparsity", "0.8"]


@pytest.mark.parametrize("kind", ["InnerProduct", "CInnerProduct"])
@pytest.mark.parametrize("crop", [False, True])
def test_the_net_without_masks(kind: str, crop: bool, tmp_path: Path, capfd: Capture) -> None:
    folder = tmp_path / "a folder"  # which a shell takes for two words
    folder.mkdir()
    net = small_net(kind=kind, crop=crop)
    train = [*write_solver(folder, net), *PRUNING]
    messages = run_well(train, capfd).messages
    assert messages[-1] == "Optimization Done."
    model, definition = folder / "snap_pruned.caffemodel", folder / "snap_pruned.prototxt"
    plain, masked = arrays(model), arrays(folder / "snap_iter_6.caffemodel")
    for name in ("ip1", "ip2"):
        assert len(plain[name]) == 2
        np.testing.assert_array_equal(plain[name][0], masked[name][0] * masked[name][2])
    kept = sum(np.count_nonzero(array) for blobs in plain.values() for array in blobs)
    total = sum(array.size for blobs in plain.values() for array in blobs)
    assert messages[-4] == (
        f"Pruned net: {model} has {kept} of {total} parameters that are not zero, and no masks; "
        f"{definition} defines it for use, in layers of plain Caffe"
    )
    text = definition.read_text()
    assert "InnerProduct" in text
    assert not any(word in text for word in ("CInner", "mask", "lr_mult", "filler", "Data"))
    loaded = load_net(definition, weights=model, surgery=False)
    side = 24 if crop else 28
    assert loaded.blob_shapes["data"] == (1, 1, side, side)
    # What the log says to do next can be done.
    for message in messages[-3:-1]:
        command = shlex.split(message[message.index("dns ") :])[1:]
        run_well(command, capfd)
    assert (folder / "snap_small.prototxt").exists()


def test_it_is_the_net_of_the_last_snapshot(tmp_path: Path, capfd: Capture) -> None:
    """A last display after it renews official masks and BatchNorm's statistics."""
    net = small_net(kind="CInnerProduct").replace(
        "inner_product_param", "cinner_product_param { c_rate: 0.5 power: 0 } inner_product_param"
    )
    top = 'top: "data" top: "label"'
    assert net.count(top) == 2
    net = net.replace(top, 'top: "raw" top: "label"').replace(
        'layer { name: "pool"',
        'layer { name: "norm" type: "BatchNorm" bottom: "raw" top: "data" }layer { name: "pool"',
    )
    run_well(write_solver(tmp_path, net, "display: 3"), capfd)
    plain = arrays(tmp_path / "snap_pruned.caffemodel")
    masked = arrays(tmp_path / "snap_iter_6.caffemodel")
    for name in ("ip1", "ip2"):
        weight, bias, weight_mask, bias_mask = masked[name]
        np.testing.assert_array_equal(plain[name][0], weight * weight_mask)
        np.testing.assert_array_equal(plain[name][1], bias * bias_mask)
    for actual, expected in zip(plain["norm"], masked["norm"], strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    ("flags", "settings", "setting"),
    [
        (["--no-surgery"], "", ""),
        ([], "", "threshold: -100"),  # masks of ones
        (PRUNING, "snapshot_after_train: false", ""),
    ],
)
def test_nothing_where_nothing_is_pruned_or_kept(
    flags: list[str], settings: str, setting: str, tmp_path: Path, capfd: Capture
) -> None:
    net = small_net().replace("num_output: ", f"{setting} num_output: ")
    run_well([*write_solver(tmp_path, net, settings), *flags], capfd)
    assert not list(tmp_path.glob("*_pruned*"))


def test_a_net_that_cannot_be_deployed(tmp_path: Path, capfd: Capture) -> None:
    # Its outputs are made of labels alone.
    net = small_net().replace("IP", "InnerProduct")
    net = net.replace('type: "SoftmaxWithLoss"', 'type: "SoftmaxWithLoss" include { phase: TRAIN }')
    head = net.index('layer { name: "pool"')
    test = net[:head] + 'layer { name: "sum" type: "Silence" bottom: "data" bottom: "label" }'
    (tmp_path / "test.prototxt").write_text(test)
    train = write_solver(tmp_path, net)
    text = (tmp_path / "solver.prototxt").read_text()
    text = text.replace("net: ", "train_net: ") + f' test_net: "{tmp_path}/test.prototxt"'
    (tmp_path / "solver.prototxt").write_text(text)
    messages = run_well([*train, *PRUNING], capfd).messages
    assert any(m.startswith(f"No {tmp_path}/snap_pruned.caffemodel is written: ") for m in messages)
    assert (tmp_path / "snap_iter_6.caffemodel").exists()
