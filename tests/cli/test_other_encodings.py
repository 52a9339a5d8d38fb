"""Definitions in GBK, with such names and paths, from the command line to snapshots and back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import h5py
import pytest

from caffe_dns.cli.main import main
from caffe_dns.proto.caffe_pb2 import NetParameter
from tests.cli.harness import complaint, run
from tests.oracle import GOLDEN

FOLDER, LAYER, PREFIX = "数据".encode("gbk"), "全连接".encode("gbk"), "模".encode("gbk")
NET = b"""# %(folder)s
name: "%(layer)s"
layer { name: "data" type: "Data" top: "data" top: "label"
  data_param { source: "%(folder)s/train" batch_size: 8 backend: LMDB } }
layer { name: "%(layer)s" type: "InnerProduct" bottom: "data" top: "%(layer)s"
  inner_product_param { num_output: 10 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "%(layer)s" bottom: "label" top: "loss" }
"""
SOLVER = b"""net: "%(folder)s/net.prototxt" base_lr: 0.01 lr_policy: "fixed" max_iter: 2
snapshot_prefix: "%(folder)s/%(prefix)s" random_seed: 1 snapshot_format: %(format)s"""
NAMES = {b"folder": FOLDER, b"layer": LAYER, b"prefix": PREFIX}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path(os.fsdecode(FOLDER))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("the file system takes names in UTF-8 only")
    shutil.copytree(GOLDEN / "data" / "mnist1k_train_lmdb", folder / "train")
    (folder / "net.prototxt").write_bytes(NET % NAMES)
    return folder


@pytest.mark.parametrize(("kind", "ending"), [(b"BINARYPROTO", ""), (b"HDF5", ".h5")])
def test_bytes_come_through(
    folder: Path, kind: bytes, ending: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    solver = folder / "solver.prototxt"
    solver.write_bytes(SOLVER % {**NAMES, b"format": kind})
    with pytest.raises(SystemExit) as done:
        main(["train", "--solver", str(solver)])
    log = capfdbinary.readouterr().err
    assert done.value.code == 0, log[-1000:]
    model = folder / f"{os.fsdecode(PREFIX)}_iter_2.caffemodel{ending}"
    assert FOLDER + b"/" + PREFIX + b"_iter_2.caffemodel" in log
    assert b"Creating Layer " + LAYER in log
    if ending:
        with h5py.File(model) as root:
            assert LAYER in list(root["data"])
        state = model.with_name(model.name.replace("caffemodel", "solverstate"))
        with h5py.File(state) as root:
            assert root["learned_net"][()] == os.fsencode(model)
    else:
        assert (
            model.read_bytes().count(LAYER) == 4
        )  # the net, the layer, its top, the loss's bottom
        assert NetParameter.FromString(model.read_bytes()).layer[0].name == "data"


def test_snapshots_are_found_again(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    solver = folder / "solver.prototxt"
    for kind, ending in ((b"BINARYPROTO", ""), (b"HDF5", ".h5")):
        solver.write_bytes(SOLVER % {**NAMES, b"format": kind})
        assert run(["train", "--solver", str(solver)], capfd).code == 0
        prefix = f"{folder}/{os.fsdecode(PREFIX)}_iter_2"
        state = f"{prefix}.solverstate{ending}"
        assert run(["train", "--solver", str(solver), "--snapshot", state], capfd).code == 0
        weights = f"{prefix}.caffemodel{ending}"
        arguments = ["test", "--model", str(folder / "net.prototxt"), "-iterations", "1"]
        assert run([*arguments, "--weights", weights], capfd).code == 0


def test_wrong_files_are_named_by_their_bytes(
    folder: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(SystemExit):
        main(["summary", "--model", f"{folder}/gone.prototxt"])
    said = capfdbinary.readouterr().err
    assert said.startswith(b"dns: " + FOLDER + b"/gone.prototxt: there is no such file")


def test_the_parser_shows_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "net.prototxt"
    file.write_bytes(b"name: " + FOLDER)
    line = complaint(["summary", "--model", str(file)], capfd)
    assert "net.prototxt:1: name: expected a string in quotes, found '\\xca' (column 7)" in line
