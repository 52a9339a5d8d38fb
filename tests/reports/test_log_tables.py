"""Tables from training logs, against those of Caffe's parse_log.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.reports.log_tables import Row, parse_log
from tests.oracle import GOLDEN

LOGS = GOLDEN / "logs"


def parse(tmp_path: Path, *lines: str) -> tuple[list[Row], list[Row]]:
    """The rows of a log of these lines, one a second, after one that says Solving."""
    path = tmp_path / "log"
    times = [f"I1122 10:00:{second:02d}.500000 7 a.cpp:1] " for second in range(len(lines) + 1)]
    text = [f"{time}{line}" for time, line in zip(times, ("Solving net", *lines), strict=True)]
    path.write_text("\n".join(text))
    train, test = parse_log(str(path))
    return train.rows, test.rows


def test_rows_are_caffes() -> None:
    train, test = parse_log(str(LOGS / "train.log"))
    assert train.to_csv(",") == (LOGS / "train.log.train").read_bytes()
    assert test.to_csv(",") == (LOGS / "train.log.test").read_bytes()


def test_a_log_that_was_emptied_begins_with_a_hole(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(bytes(1 << 16) + (LOGS / "train.log").read_bytes())
    train, _ = parse_log(str(tmp_path / "log"))
    assert train.to_csv(",") == (LOGS / "train.log.train").read_bytes()


def test_first_rate_is_that_of_the_second_row(tmp_path: Path) -> None:
    train, _ = parse(
        tmp_path,
        "Iteration 0, loss = 1",
        "    Train net output #0: loss = 1.5 (* 1 = 1.5 loss)",
        "Iteration 0, lr = 0.01",
        "Iteration 5, loss = 1",
        "    Train net output #0: loss = 2e-3 (* 1 = 2e-3 loss)",
    )
    assert train == [
        {"NumIters": 0.0, "Seconds": 2.0, "LearningRate": 0.01, "loss": 1.5},
        {"NumIters": 5.0, "Seconds": 5.0, "LearningRate": 0.01, "loss": 0.002},
    ]


def test_a_row_ends_when_it_is_as_long_as_the_first(tmp_path: Path) -> None:
    lines = []
    for iteration in (0, 10, 20):
        lines.append(f"Iteration {iteration}, Testing net (#0)")
        lines.append(f"    Test net output #0: accuracy = 0.{iteration + 1}")
        lines.append(f"    Test net output #1: loss = {iteration}")
    lines.append("Iteration 30, Testing net (#0)")
    lines.append("    Test net output #0: accuracy = 0.9")  # the log breaks off here
    train, test = parse(tmp_path, *lines)
    assert train == []
    assert [row["NumIters"] for row in test] == [0, 10, 20]
    assert [row["loss"] for row in test] == [0, 10, 20]
    assert all(math.isnan(row["LearningRate"]) for row in test)


def test_outputs_that_come_later_get_a_column(tmp_path: Path) -> None:
    path = tmp_path / "log"
    stamp = "I1122 10:00:00.000000 7 a.cpp:1] "
    outputs = [(0, "a", 1), (1, "b", 2), (2, "a", 3)]
    lines = [
        f"{stamp}Iteration {iteration}, Train net output #0: {name} = {value}"
        for iteration, name, value in outputs
    ]
    path.write_text("\n".join([f"{stamp}Solving", *lines]))
    text = parse_log(str(path))[0].to_csv(";").decode()
    assert text.splitlines() == [
        "NumIters;Seconds;LearningRate;a;b",
        "0.0;0.0;nan;1.0;",
        "1.0;0.0;nan;;2.0",
        "2.0;0.0;nan;3.0;",
    ]


def test_definitions_and_surgery_between_the_lines(tmp_path: Path) -> None:
    train, _ = parse(
        tmp_path,
        "Iteration 0, loss = 1",
        "    Train net output #0: loss = 1",
        "ConV Sparsity: 0.25\nIP Sparsity: 0.5",
        "Initializing net from parameters: \nbase_lr: 7\n\nlayer {\n}",
        "Iteration 1, loss = 1",
        "    Train net output #0: loss = 2",
    )
    assert [(row["NumIters"], row["Seconds"], row["loss"]) for row in train] == [
        (0.0, 2.0, 1.0),
        (1.0, 6.0, 2.0),
    ]


def test_time_goes_on_over_new_year(tmp_path: Path) -> None:
    path = tmp_path / "log"
    output = "Train net output #0: loss = 1"
    path.write_text(
        "I1231 23:59:00.000000 7 a.cpp:1] Solving net\n"
        f"I1231 23:59:30.000000 7 a.cpp:1] Iteration 0, {output}\n"
        f"I0101 00:00:30.000000 7 a.cpp:1] Iteration 1, {output}\n"
        f"I0230 00:00:30.000000 7 a.cpp:1] Iteration 2, {output} (there is no such day)\n"
    )
    assert [row["Seconds"] for row in parse_log(str(path))[0].rows] == [30.0, 90.0]


@pytest.mark.parametrize("name", ["test.log", "gone.log", "."])
def test_files_that_are_no_training_logs(name: str) -> None:
    with pytest.raises(CaffeError, match=r"Solving|cannot be read"):
        parse_log(str(LOGS / name))


@pytest.mark.parametrize("number", ["1.2.3", "--5", "e", "0.5-3"])
def test_what_is_no_number_is_passed_over(tmp_path: Path, number: str) -> None:
    train, _ = parse(
        tmp_path,
        "Iteration 0, lr = 0.01",
        "    Train net output #0: loss = 1.5",
        "Iteration 5, lr = 0.5-3",
        f"    Train net output #0: loss = {number}",
        "Iteration 9, lr = 0.02",
        "    Train net output #0: loss = 2.5",
        "Iteration 12, lr = 0.02",
        "    Train net output #0: loss = 3.5",
    )
    assert [(row["NumIters"], row["LearningRate"], row["loss"]) for row in train] == [
        (0, 0.02, 1.5),
        (9, 0.02, 2.5),
        (12, 0.02, 3.5),
    ]
