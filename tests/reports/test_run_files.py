"""What belongs to a run, and the net that comes of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import SolverParameter, SolverState
from caffe_dns.proto.text import parse_text, read_binary, write_binary
from caffe_dns.reports.kept import count_kept
from caffe_dns.reports.run_files import RunFiles, find_run, run_titles
from caffe_dns.reports.run_net import load_run_net
from tests.oracle import GOLDEN

pytestmark = pytest.mark.usefixtures("in_golden_folder")

RUN = "runs/surgery_holmes"
MODEL, STATE = f"{RUN}/snap_iter_40.caffemodel", f"{RUN}/snap_iter_40.solverstate"


def found(argument: str) -> RunFiles:
    return find_run(argument, "run")


@pytest.mark.parametrize("argument", [RUN, f"{RUN}/caffe.log", f"{RUN}/caffe.log,{STATE}"])
def test_a_log_leads_to_its_snapshots(argument: str) -> None:
    files = found(argument)
    assert (files.weights, files.state) == (MODEL, STATE)
    assert files.log.solver is not None and files.log.net is not None
    assert list(files.log.run.scores) == ["test accuracy"]
    assert files.log.shapes["mnist"] == [(32, 1, 28, 28), (32,)]


@pytest.mark.parametrize("argument", [f"{RUN}/solver.prototxt", f"{RUN}/snap", STATE])
def test_without_a_log(argument: str) -> None:
    files = found(argument)
    assert (files.weights, files.state) == (MODEL, STATE)
    assert files.log.run.is_empty()
    assert files.weights_given == (argument != f"{RUN}/solver.prototxt")


def test_a_folder_without_a_log(tmp_path: Path) -> None:
    for name in ("snap_iter_20", "snap_iter_40"):
        for ending in ("caffemodel", "solverstate"):
            shutil.copy(f"{RUN}/{name}.{ending}", tmp_path)
    assert found(str(tmp_path)).state == f"{tmp_path}/snap_iter_40.solverstate"
    text = Path(f"{RUN}/solver.prototxt").read_text().replace(RUN, str(tmp_path))
    (tmp_path / "my_solver.prototxt").write_text(text)
    files = found(str(tmp_path))
    assert files.log.solver is not None and not files.weights_given


def test_snapshots_of_a_longer_run_are_not_of_this_log(tmp_path: Path) -> None:
    lines = Path(f"{RUN}/caffe.log").read_text().splitlines(keepends=True)
    end = next(i for i, line in enumerate(lines) if "Iteration 30," in line)
    (tmp_path / "short.log").write_text("".join(lines[:end]))
    assert found(str(tmp_path / "short.log")).weights == f"{RUN}/snap_iter_20.caffemodel"


def test_prefixes_count_from_the_folder_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"I1122 11:40:16.613075 31237 provenance.py:1] Folder: {GOLDEN} (git 12ab)\n"
    (tmp_path / "a.log").write_text(line + Path(f"{RUN}/caffe.log").read_text())
    monkeypatch.chdir(tmp_path)
    assert found("a.log").weights == str(GOLDEN / MODEL)


def test_wrong_input(tmp_path: Path) -> None:
    def said(argument: str) -> str:
        with pytest.raises(CaffeError) as caught:
            found(argument)
        return str(caught.value)

    (tmp_path / "a_iter_7.solverstate").write_bytes(b"")
    assert "has no training log" in said("data")
    assert said(",") == "',' names no file of a run"
    assert "gone.caffemodel: cannot be read" in said("gone.caffemodel")
    assert "a_iter_7.caffemodel: cannot be read" in said(f"{tmp_path}/a_iter_7.solverstate")
    assert "gone_prefix: cannot be read" in said("gone_prefix")
    assert "gone.prototxt" in said("gone.prototxt")
    assert "train_val.prototxt" in said(f"{RUN}/train_val.prototxt")


def test_titles() -> None:
    assert run_titles(["a/b.log,c.prototxt", "d/"]) == ["b", "d"]
    assert run_titles(["."]) == [GOLDEN.name]


# The net ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", [f"{RUN}/caffe.log", f"{RUN}/solver.prototxt", MODEL])
def test_the_net(argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = found(argument)
    reference = load_net(f"{RUN}/train_val.prototxt", "TRAIN", MODEL)
    if argument.endswith(".log"):  # the data are not asked
        monkeypatch.setattr("caffe_dns.data.db.open_database", None)
    run_net = load_run_net(files, [])
    net = run_net.net
    assert count_kept(net) == count_kept(reference)
    for name, blobs in reference.params.items():
        for ours, theirs in zip(net.params[name], blobs, strict=True):
            assert torch.equal(ours, theirs)
    reference.close()
    model = run_net.unmasked()
    assert model.kept == sum(count.kept for count in count_kept(net))
    assert [layer.type for layer in model.definition.param.layer][-1] == "Softmax"


def test_a_run_without_surgery_has_no_masks() -> None:
    run_net = load_run_net(found("logs/train.log"), [])
    assert run_net.trained
    assert not any(step.layer.mask_indices for step in run_net.net.steps)


def test_a_solver_without_snapshots(tmp_path: Path) -> None:
    text = Path(f"{RUN}/solver.prototxt").read_text()
    (tmp_path / "solver.prototxt").write_text(text.replace(f"{RUN}/snap", f"{tmp_path}/none"))
    run_net = load_run_net(found(str(tmp_path / "solver.prototxt")), [])
    assert not run_net.trained and run_net.net.blob_shapes["conv1"] == (32, 8, 24, 24)


def test_shapes_in_the_place_of_data() -> None:
    run_net = load_run_net(found(MODEL), [(1, 28, 28)])
    assert run_net.net.blob_shapes["conv1"] == (1, 8, 24, 24)


def test_thresholds_are_those_of_the_state(tmp_path: Path) -> None:
    guo = "runs/surgery_guo"
    for ending in ("caffemodel", "solverstate"):
        shutil.copy(f"{guo}/snap_iter_40.{ending}", tmp_path / f"a_iter_40.{ending}")
    state = read_binary(f"{guo}/snap_iter_40.solverstate", SolverState)
    state.surgery_moments.add(layer="conv2", mu=0.5, sigma=0.25, threshold=1.5)
    write_binary(tmp_path / "a_iter_40.solverstate", state)
    run_net = load_run_net(found(f"{tmp_path}/a"), [(1, 28, 28)])
    assert run_net.thresholds == {"conv2": 1.5}
    conv2: Any = run_net.net.layer("conv2")
    assert conv2.moments.tolist() == [0.5, 0.25]


def test_nothing_that_defines_a_net() -> None:
    files = found(f"{RUN}/caffe.log")
    files.log.net, files.log.solver, files.weights = None, None, ""
    with pytest.raises(CaffeError, match="there is no definition"):
        load_run_net(files, [])
    files.log.solver = parse_text('net: "gone.prototxt"', SolverParameter).message
    with pytest.raises(CaffeError, match="gone"):
        load_run_net(files, [])
