"""Resuming and scoring log what a real Caffe logs, message by message; for training see
`test_golden_runs`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arithmetic import RoundedOnce
from tests.cli.harness import run_well
from tests.messages import assert_same_messages, messages
from tests.oracle import GOLDEN
from tests.test_golden_runs import fetch

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def rounded_once() -> Iterator[None]:
    """The same numbers on every processor; `test_golden_steps` has what production computes."""
    with RoundedOnce():
        yield


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a recorded run with its snapshots."""
    monkeypatch.chdir(tmp_path)
    return fetch("sgd_inv", tmp_path, "snap_iter_*")


def check(log: str, capfd: Capture, *words: str) -> None:
    """Hold what `dns` logs, called with these words, to what Caffe logged."""
    ours = run_well([*words, "--no-surgery"], capfd).err
    assert_same_messages(messages(ours), messages((GOLDEN / "logs" / log).read_text()))


def test_resume(run: Path, capfd: Capture) -> None:
    flags = ["--solver", f"{run}/solver.prototxt", "--snapshot", f"{run}/snap_iter_20.solverstate"]
    check("resume.log", capfd, "train", *flags)


def test_test(run: Path, capfd: Capture) -> None:
    flags = ["--model", f"{run}/train_val.prototxt", "--weights", f"{run}/snap_iter_40.caffemodel"]
    check("test.log", capfd, "test", *flags, "--iterations", "10")
