"""--resume finds the newest complete snapshot, --keep removes what is old enough."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.internal.decoder import _DecodeVarint

from caffe_dns.encoding import decode
from caffe_dns.errors import CaffeError
from caffe_dns.files import temporary_beside
from caffe_dns.solver.snapshot_files import Rotation, find_snapshots
from tests.cli.harness import complaint, run_well
from tests.oracle import GOLDEN
from tests.solver.harness import make_solver
from tests.solver.test_observers import write_solver

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]


def solver_file(folder: Path, **settings: object) -> str:
    return write_solver(
        folder, "surgery_holmes", **{"max_iter": 6, "snapshot": 2, "test_interval": 100, **settings}
    )


def train(folder: Path, capture: Capture, *flags: str, **settings: object) -> list[str]:
    solver = solver_file(folder, **settings)
    return run_well(["train", "--solver", solver, *flags], capture).messages


def whole_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("snap_iter_*"))}


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_the_newest_whole_one_is_resumed(form: str, tmp_path: Path, capfd: Capture) -> None:
    train(tmp_path, capfd, snapshot_format=form)
    uninterrupted = whole_files(tmp_path)
    ending = ".h5" if form == "HDF5" else ""
    state = tmp_path / f"snap_iter_6.solverstate{ending}"
    model = tmp_path / f"snap_iter_4.caffemodel{ending}"
    state.write_bytes(state.read_bytes()[:100])
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    messages = train(tmp_path, capfd, "--resume", snapshot_format=form)
    passed_over = [line for line in messages if line.startswith("Skipping")]
    assert [f"iter_{n}.solverstate" in line for n, line in zip((6, 4), passed_over, strict=True)]
    assert passed_over[1] == (
        f"Skipping {tmp_path}/snap_iter_4.solverstate{ending}: its model {model} is not what "
        "it was when the state was written"
    )
    assert f"Resuming from {tmp_path}/snap_iter_2.solverstate{ending}" in messages
    if form == "BINARYPROTO":  # HDF5 has the time of writing in it
        assert whole_files(tmp_path) == uninterrupted


def field_ends(message: bytes) -> Iterator[int]:
    """Where the fields of a message end, but for the last: what stands before can be read."""
    at = 0
    while at < len(message):
        (tag, at) = _DecodeVarint(message, at)
        (number, at) = _DecodeVarint(message, at)
        if tag & 7 == 2:  # then it is the length of what follows
            at += number
        if at < len(message):
            yield at


def test_a_state_that_ends_between_two_fields_is_passed_over(
    tmp_path: Path, capfd: Capture
) -> None:
    train(tmp_path, capfd)
    newest = find_snapshots(f"{tmp_path}/snap")[0]
    whole = newest.state.read_bytes()
    ends = [*field_ends(whole)]
    assert len(ends) > 8
    for end in ends:
        newest.state.write_bytes(whole[:end])
        assert newest.fault() is not None
    assert newest.fault() == "is cut short: its current_step is missing, which comes last"
    assert f"Resuming from {tmp_path}/snap_iter_4.solverstate" in train(tmp_path, capfd, "--resume")
    assert newest.state.read_bytes() == whole


def test_a_state_of_caffe_that_ends_between_two_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("caffemodel", "solverstate"):
        shutil.copy(GOLDEN / f"runs/sgd_inv/snap_iter_20.{kind}", tmp_path)
    monkeypatch.chdir(tmp_path)
    (snapshot,) = find_snapshots("snap")
    whole = snapshot.state.read_bytes()
    assert snapshot.fault() is None
    for end in field_ends(whole):
        snapshot.state.write_bytes(whole[:end])
        assert "no current_step" in (snapshot.fault() or "")


def test_a_state_by_name(tmp_path: Path, capfd: Capture) -> None:
    train(tmp_path, capfd)
    state = f"{tmp_path}/snap_iter_4.solverstate"
    for flags in (["--resume", state], [f"-resume={state}"]):
        assert f"Resuming from {state}" in train(tmp_path, capfd, *flags)


def test_nothing_to_resume_from_is_a_beginning(tmp_path: Path, capfd: Capture) -> None:
    messages = train(tmp_path, capfd, "--resume")
    assert "No snapshot to resume from yet: starting from the beginning" in messages
    # The same command again has nothing left to do.
    assert f"Resuming from {tmp_path}/snap_iter_6.solverstate" in train(tmp_path, capfd, "--resume")


def test_no_whole_one_is_an_error(tmp_path: Path, capfd: Capture) -> None:
    train(tmp_path, capfd)
    solver = solver_file(tmp_path)
    for path in tmp_path.glob("*.caffemodel"):
        path.unlink()
    line = complaint(["train", "--solver", solver, "--resume"], capfd)
    state = tmp_path / "snap_iter_6.solverstate"
    assert line == (
        f"dns: {solver}: no snapshot {tmp_path}/snap_iter_* can be resumed from (the newest, "
        f"{state}: its model is gone: there is none at '{tmp_path}/snap_iter_6.caffemodel'); to "
        "start from the beginning, move them elsewhere"
    )


def test_an_empty_name_is_no_beginning(tmp_path: Path, capfd: Capture) -> None:
    solver = solver_file(tmp_path)
    for flags in (["--resume", ""], ["-resume="]):
        line = complaint(["train", "--solver", solver, *flags], capfd)
        assert line == "dns: --resume is given an empty name; a state, or no name, would be right"


def test_resume_and_snapshot_exclude_each_other(tmp_path: Path, capfd: Capture) -> None:
    solver = solver_file(tmp_path)
    line = complaint(["train", "--solver", solver, "--snapshot", "a", "--resume", "b"], capfd)
    assert "-snapshot and --resume both say where to go on" in line


def test_keep_removes_what_is_old(tmp_path: Path, capfd: Capture) -> None:
    stranger = tmp_path / "snap_iter_1.caffemodel"
    stranger.write_bytes(b"by hand")
    train(tmp_path, capfd, "--keep", "2", max_iter=8)
    assert [one.iteration for one in find_snapshots(f"{tmp_path}/snap")] == [8, 6]
    assert stranger.exists()
    assert not (tmp_path / "snap_iter_2.caffemodel").exists()


def test_keep_after_a_resume_counts_the_earlier_ones(tmp_path: Path, capfd: Capture) -> None:
    train(tmp_path, capfd)
    train(tmp_path, capfd, "--resume", "--keep=2", max_iter=10)
    assert [one.iteration for one in find_snapshots(f"{tmp_path}/snap")] == [10, 8]


def test_snapshots_of_another_run_are_left(tmp_path: Path, capfd: Capture) -> None:
    train(tmp_path, capfd, max_iter=10)
    train(tmp_path, capfd, "--keep=1", max_iter=6)
    assert [one.iteration for one in find_snapshots(f"{tmp_path}/snap")] == [10, 8, 6]


def test_the_newest_whole_one_stays(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "snapshot: 1")
    rotation = Rotation(keep=1)

    def damage_and_add(iteration: int, state: str) -> None:
        if iteration >= 3:
            Path(state).write_bytes(b"")
        rotation.add(iteration, state)

    solver.on_snapshot = damage_and_add
    solver.step(4)
    solver.close()
    assert [one.iteration for one in find_snapshots(f"{tmp_path}/snap")] == [4, 2]


@pytest.mark.parametrize("ending", ["", ".h5"])
def test_damaged_models_of_caffe_are_found_without_a_checksum(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = GOLDEN / "runs" / ("sgd_hdf5_snapshot" if ending else "sgd_inv")
    for kind in ("caffemodel", "solverstate"):
        shutil.copy(run / f"snap_iter_20.{kind}{ending}", tmp_path)
    monkeypatch.chdir(tmp_path)
    (snapshot,) = find_snapshots("snap")
    assert snapshot.fault() is None
    raw = snapshot.model.read_bytes()
    snapshot.model.write_bytes(raw[: len(raw) // 2])
    assert str(snapshot.model) in (snapshot.fault() or "")


def test_at_least_one_is_kept() -> None:
    with pytest.raises(CaffeError, match="at least one snapshot has to stay, not 0"):
        Rotation(0)


@pytest.mark.parametrize("prefix", ["snap", "a.b[1]", "with space", ""])
def test_names_of_any_prefix(prefix: str, tmp_path: Path) -> None:
    for name in (f"{prefix}_iter_3.solverstate", f"{prefix}_iter_12.solverstate.h5", "x_iter_4.b"):
        (tmp_path / name).touch()
    found = find_snapshots(f"{tmp_path}/{prefix}")
    assert [one.iteration for one in found] == [12, 3]
    assert found[0].model == tmp_path / f"{prefix}_iter_12.caffemodel.h5"


def test_a_name_that_is_too_long_is_found_at_the_start(tmp_path: Path, capfd: Capture) -> None:
    solver = solver_file(tmp_path)
    text = Path(solver).read_text().replace(f"{tmp_path}/snap", f"{tmp_path}/{'a' * 222}")
    Path(solver).write_text(text)
    line = complaint(["train", "--solver", solver], capfd)
    assert "snapshot_prefix: cannot write to" in line
    assert "File name too long" in line
    assert [path.name for path in tmp_path.iterdir()] == ["solver.prototxt"]


def test_what_a_killed_run_left_goes_when_the_next_one_starts(
    tmp_path: Path, capfd: Capture
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    ours = temporary_beside(tmp_path / "snap_iter_2.caffemodel")
    left = ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{dead.pid}."))
    left.write_bytes(b"half")
    train(tmp_path, capfd)
    assert not left.exists()


def test_a_prefix_that_is_not_utf_8(tmp_path: Path) -> None:
    raw = b"\xca\xfd"
    (tmp_path / os.fsdecode(raw + b"_iter_3.solverstate")).touch()
    # As a definition has it, whose bytes stand-ins keep.
    found = find_snapshots(f"{tmp_path}/{decode(raw)}")
    assert [one.iteration for one in found] == [3]


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: object) -> list[str]:
        raise OSError(errno.EIO, "Input/output error")

    solver = solver_file(tmp_path)
    assert not find_snapshots(f"{tmp_path}/none/snap")
    monkeypatch.setattr(Path, "iterdir", refuse)
    line = complaint(["train", "--solver", solver, "--resume"], capfd)
    assert line.endswith(f"{tmp_path}: cannot be listed: Input/output error")
