"""`dns parse_log`, also on the logs that `dns train` writes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.cli.harness import complaint, run, run_well
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]
LOG = str(GOLDEN / "logs" / "train.log")


def test_files_are_caffes(tmp_path: Path, capfd: Capture) -> None:
    result = run_well(["parse_log", LOG, str(tmp_path), "--verbose"], capfd)
    for kind in ("train", "test"):
        path = tmp_path / f"train.log.{kind}"
        assert path.read_bytes() == Path(f"{LOG}.{kind}").read_bytes()
        assert f"Wrote {path}\n" in result.out
    assert run_well(["parse_log", LOG, str(tmp_path)], capfd).out == ""


def test_delimiter(tmp_path: Path, capfd: Capture) -> None:
    run_well(["parse_log", "--delimiter=;", LOG, str(tmp_path)], capfd)
    text = Path(f"{LOG}.test").read_bytes().replace(b",", b";")
    assert (tmp_path / "train.log.test").read_bytes() == text


def test_log_of_our_own_surgery(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(GOLDEN)
    text = Path("runs/surgery_holmes/solver.prototxt").read_text()
    text = text.replace("runs/surgery_holmes/snap", str(tmp_path / "snap"))
    solver = tmp_path / "solver.prototxt"
    solver.write_text(text.replace("max_iter: 40", "max_iter: 4"))
    weights = "runs/surgery_holmes/init.caffemodel"
    trained = run(["train", "-solver", str(solver), "-weights", weights], capfd)
    assert any("Sparsity" in line for line in trained.messages)
    log = tmp_path / "own.log"
    log.write_text(trained.err)

    result = run_well(["parse_log", str(log), str(tmp_path), "-verbose"], capfd)
    with (tmp_path / "own.log.train").open(newline="") as file:
        rows = list(csv.DictReader(file))
    outputs = [line for line in trained.messages if "Train net output" in line]
    assert len(rows) == len(outputs) == 4
    for row, output in zip(rows, outputs, strict=True):
        assert f"loss = {float(row['loss']):.6g} " in output
    assert [row["NumIters"] for row in rows] == ["0.0", "1.0", "2.0", "3.0"]
    assert f"Not writing {tmp_path}/own.log.test; no lines to write" in result.out


def test_wrong_input(tmp_path: Path, capfd: Capture) -> None:
    def said(*arguments: str) -> str:
        return complaint(["parse_log", *arguments], capfd)

    folder = str(tmp_path)
    assert "gone.log: cannot be read" in said("gone.log", folder)
    assert "not a training log" in said(str(GOLDEN / "logs" / "test.log"), folder)
    assert "no folder" in said(LOG, str(tmp_path / "gone"))
    assert "-delimiter" in said("--delimiter=", LOG, folder)
    assert "-delimiter" in said("--delimiter=ab", LOG, folder)
    assert "'OUTPUT_DIR'" in said(LOG)
    empty = tmp_path / "empty.log"
    empty.write_text("I1122 10:00:00.000000 7 a.cpp:1] Solving net\n")
    assert "empty.log: holds no outputs" in said(str(empty), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["empty.log"]
