"""Curves from training logs: Caffe's, the fork's and our own."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.reports.curves import Run, read_run, run_names
from tests.oracle import GOLDEN

PREFIX = "I1122 10:00:00.500000 7 a.cpp:1] "
#: More digits than Python makes a number of.
MANY = "7" * 5000


def read(tmp_path: Path, *lines: str) -> Run:
    path = tmp_path / "log"
    path.write_text("".join(f"{PREFIX}{line}\n" for line in lines))
    return read_run(str(path), "run")


def test_caffes_log_has_the_values_of_its_table() -> None:
    log = GOLDEN / "logs" / "train.log"
    run = read_run(str(log), "run")
    assert list(run.losses) == ["test loss", "train loss"]
    assert list(run.scores) == ["test accuracy"]
    assert run.sparsities == {}
    for phase in ("train", "test"):
        with Path(f"{log}.{phase}").open(newline="") as file:
            rows = list(csv.DictReader(file))
        curve = run.losses[f"{phase} loss"]
        table = {int(float(row["NumIters"])): float(row["loss"]) for row in rows}
        assert table.items() <= curve.items()


def test_the_forks_log_has_two_sparsities() -> None:
    run = read_run(str(GOLDEN / "runs" / "surgery_holmes" / "caffe.log"), "run")
    assert list(run.sparsities) == ["convolutions", "inner products"]
    assert all(sorted(series) == list(range(40)) for series in run.sparsities.values())
    assert all(0 < value < 1 for series in run.sparsities.values() for value in series.values())


def test_our_log_has_a_sparsity_for_each_layer(tmp_path: Path) -> None:
    run = read(
        tmp_path,
        "Iteration 0 (0 iter/s, 1s/10 iters), loss = 2.5",
        "    Train net output #0: loss = 2.25 (* 1 = 2.25 loss)",
        "ConV Sparsity: 0.5",
        "Surgery conv 1: kept 1, pruned 3, sparsity 0.75, spliced back 2",
        "Iteration 0, lr = 0.01",
        "Iteration 10 (3 iter/s, 1s/10 iters), loss = nan",
        "    Train net output #0: loss = -nan (* 1 = -nan loss)",
        "Surgery conv 1: kept 2, pruned 2, sparsity 5e-1, spliced back 0",
    )
    assert run.sparsities == {"conv 1": {0: 0.75, 10: 0.5}}
    assert run.kept == {"conv 1": {0: 1, 10: 2}} and run.masked == {"conv 1": 4}
    assert run.spliced == {"conv 1": {0: 2, 10: 0}}
    assert run.rates == {0: 0.01}
    assert run.losses["train loss"][0] == 2.25
    assert math.isnan(run.losses["train loss"][10])


def test_several_test_nets_and_outputs_of_several_elements(tmp_path: Path) -> None:
    run = read(
        tmp_path,
        "Iteration 5, Testing net (#0)",
        "    Test net output #0: accuracy = 0.5",
        "Iteration 5, Testing net (#1)",
        "    Test net output #0: accuracy = 0.25",
        "    Test net output #1: per_class = 0.5",
        "    Test net output #2: per_class = 0.75",
    )
    assert run.scores == {
        "test accuracy": {5: 0.5},
        "test #1 accuracy": {5: 0.25},
        "test #1 per_class": {5: 0.625},
    }


def test_a_log_without_outputs_has_the_smoothed_loss(tmp_path: Path) -> None:
    run = read(tmp_path, "Iteration 0, loss = 2.5", "Iteration 20, loss = 1.5e-1")
    assert run.losses == {"train loss": {0: 2.5, 20: 0.15}}


def test_a_resumed_run_goes_over_the_first(tmp_path: Path) -> None:
    def lines(iteration: int, loss: float) -> list[str]:
        return [
            f"Iteration {iteration}, loss = {loss}",
            f"    Train net output #0: loss = {loss} (* 1 = {loss} loss)",
        ]

    run = read(tmp_path, *lines(0, 3), *lines(10, 2), *lines(20, 9), *lines(10, 4), *lines(20, 1))
    assert run.losses["train loss"] == {0: 3, 10: 4, 20: 1}


def test_names_of_runs() -> None:
    assert run_names(["x/a.log", "b"]) == ["a", "b"]
    assert run_names(["/runs/x/a.log", "/runs/y/a.log"]) == ["x/a.log", "y/a.log"]
    assert run_names(["1/x/a", "2/x/a", "b"]) == ["1/x/a", "2/x/a", "b"]
    assert run_names(["x/a", "x/a"]) == ["x/a", "x/a"]


def test_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=r"gone\.log: cannot be read"):
        read_run("gone.log", "run")
    with pytest.raises(CaffeError, match="log: is not a training log"):
        read(tmp_path, "Solving net")


@pytest.mark.parametrize(
    "piece", ["1", "] Train net output #0: a = 1 (* 1 = ", "] Surgery ", "] Iteration 1 ("]
)
def test_long_lines_are_searched_in_no_time(tmp_path: Path, piece: str) -> None:
    """Each of these would keep a search busy for hours, or days, if it tried all combinations."""
    lines = [f"    Train net output #0: a = {piece * (4000 // len(piece))}x"] * 20
    lines += [f"    Train net output #0: a = {piece * 100_000}x"]
    run = read(tmp_path, "Iteration 0, loss = 2", *lines)
    assert run.losses == {"train loss": {0: 2.0}}


def test_where_pruning_ends() -> None:
    def end(kept: dict[int, float], spliced: dict[int, float]) -> int | None:
        other = dict.fromkeys(kept, 7.0)
        return Run(
            "", kept={"a": kept, "b": other}, spliced={"a": spliced, "b": {}}
        ).end_of_pruning()

    assert end({0: 9, 10: 5, 20: 4, 30: 4, 40: 4}, {}) == 20
    assert end({0: 9, 10: 5, 20: 4}, {}) is None  # perhaps it goes on
    assert end({0: 9, 10: 5, 20: 5, 30: 5}, {20: 2}) == 20  # as many came back as went
    assert end({0: 9, 10: 9}, {}) is None
    assert end({}, {}) is None


@pytest.mark.parametrize(
    "line",
    [
        "Iteration 7, loss = .",
        "Iteration 7, lr = ..5",
        f"Iteration {MANY}, loss = 1",
        f"    Train net output #{MANY}: loss = 1 (* 1 = 1 loss)",
        f"Surgery conv: kept {MANY}, pruned 1, sparsity 0.5, spliced back 0",
        f"Surgery conv: kept 7, pruned 1, sparsity 0.5, spliced back {MANY}",
    ],
    ids=["point", "points", "iteration", "output", "kept", "spliced"],
)
def test_what_is_no_number_is_passed_over(tmp_path: Path, line: str) -> None:
    expected = read(tmp_path, "Iteration 3, loss = 2.5", "Iteration 5, loss = 0.5")
    damaged = read(tmp_path, "Iteration 3, loss = 2.5", line, "Iteration 5, loss = 0.5")
    assert damaged == expected
