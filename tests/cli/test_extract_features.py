"""`dns extract_features` against the database and the log of Caffe's tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.data.db import open_database
from caffe_dns.proto.caffe_pb2 import Datum
from tests.cli.harness import complaint, run_well
from tests.oracle import assert_close

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]
NET = "runs/sgd_inv/train_val.prototxt"
WEIGHTS = "runs/sgd_inv/resumed_iter_40.caffemodel"


def datums(path: Path | str, backend: str = "lmdb") -> dict[bytes, Datum]:
    with open_database(str(path), backend, announce=False) as database:
        return {key: Datum.FromString(bytes(value)) for key, value in database.records()}


def values(datums: dict[bytes, Datum]) -> np.ndarray:
    return np.array([datum.float_data for datum in datums.values()], np.float32)


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
def test_features_are_caffes(backend: str, tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "features"
    result = run_well(["extract_features", WEIGHTS, NET, "ip1", str(target), "2", backend], capfd)
    ours, theirs = datums(target, backend), datums("tools/features_lmdb")
    assert list(ours) == list(theirs)
    assert_close(values(ours), values(theirs), "ip1")
    for datum in (*ours.values(), *theirs.values()):
        datum.ClearField("float_data")
    assert ours == theirs
    log = Path("logs/extract_features.log").read_text().splitlines()
    assert result.messages == [line.partition("] ")[2] for line in log]
    assert all(line.startswith("E") for line in result.err.splitlines())


def test_glogs_flags_show_the_other_lines(tmp_path: Path, capfd: Capture) -> None:
    """What Caffe 1.0 logs with -logtostderr, without its lines about the net."""
    words = ["-logtostderr", WEIGHTS, NET, "ip1,label", f"{tmp_path}/a,{tmp_path}/b", "1", "lmdb"]
    lines = run_well(["extract_features", *words], capfd).messages
    assert "Network initialization done." in lines
    assert lines[lines.index("Network initialization done.") + 1 :] == [
        f"Opening dataset {tmp_path}/a",
        f"Opened lmdb {tmp_path}/a",
        f"Opening dataset {tmp_path}/b",
        f"Opened lmdb {tmp_path}/b",
        "Extracting Features",
        "Extracted features of 50 query images for feature blob ip1",
        "Extracted features of 50 query images for feature blob label",
        "Successfully extracted the features!",
    ]


def test_several_blobs_of_several_shapes(tmp_path: Path, capfd: Capture) -> None:
    names = ["pool2", "label", "loss"]
    targets = [str(tmp_path / name) for name in names]
    batches = "1"
    arguments = [WEIGHTS, NET, ",".join(names), ",".join(targets), batches, "lmdb", "CPU"]
    run_well(["extract_features", *arguments], capfd)
    net = load_net(NET, "TEST", WEIGHTS)
    with torch.no_grad():
        blobs = net()
    net.close()
    for name, target in zip(names, targets, strict=True):
        found = list(datums(target).values())
        shape = (*blobs[name].shape[1:], 1, 1, 1)[:3]
        assert {(d.channels, d.height, d.width) for d in found} == {shape}
        np.testing.assert_array_equal(
            np.array([d.float_data for d in found], np.float32).ravel(),
            blobs[name].numpy().ravel(),
        )


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([WEIGHTS, NET, "ip9", "DB", "1", "lmdb"], "Unknown feature blob name ip9"),
        ([WEIGHTS, NET, "ip1,ip2", "DB", "1", "lmdb"], "2 and 1"),
        ([WEIGHTS, NET, "ip1,ip2", "DB,DB", "1", "lmdb"], "twice"),
        ([WEIGHTS, NET, "ip1", "DB", "0", "lmdb"], "num_mini_batches"),
        ([WEIGHTS, NET, "ip1", "DB", "two", "lmdb"], "'two'"),
        ([WEIGHTS, NET, "ip1", "DB", "1", "lmbd"], "'lmdb'"),
        ([WEIGHTS, NET, "ip1", "no/DB", "1", "lmdb"], "no folder"),
        ([WEIGHTS, NET, "ip1", "DB", "1", "lmdb", "GPU", "99"], "99"),
        ([WEIGHTS, NET, "ip1", "DB", "1", "lmdb", "TPU"], "TPU"),
        (["gone.caffemodel", NET, "ip1", "DB", "1", "lmdb"], "gone.caffemodel"),
        ([WEIGHTS, "gone.prototxt", "ip1", "DB", "1", "lmdb"], "gone.prototxt"),
        ([WEIGHTS, NET, "ip1"], "DATASET_NAMES"),
    ],
)
def test_wrong_input_leaves_nothing(
    arguments: list[str], word: str, tmp_path: Path, capfd: Capture
) -> None:
    arguments = [argument.replace("DB", str(tmp_path / "db")) for argument in arguments]
    assert word in complaint(["extract_features", *arguments], capfd)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_exists_stops_all(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "b").mkdir()
    targets = f"{tmp_path}/a,{tmp_path}/b"
    line = complaint(["extract_features", WEIGHTS, NET, "ip1,ip2", targets, "1", "lmdb"], capfd)
    assert f"{tmp_path}/b: exists already" in line
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
