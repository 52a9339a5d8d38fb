"""Training, resuming and scoring log what a real Caffe logs, message by message."""

from __future__ import annotations

import difflib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.arithmetic import RoundedOnce
from tests.cli.harness import run_well
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]

PREFIX = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ \w+\.\w+:\d+\] ")
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")
SPEED = re.compile(r" \(\S+ iter/s, \S+s/(\d+) iters\)")
#: What no fork says: the state of each layer's masks, and what is left at the end.
OWN = re.compile(r"\] (Surgery|Pruned net:) ")
#: Reading threads log these when they come to it.
AT_ANY_TIME = ("Restarting data prefetching", "Waiting for data")
#: What dns tells of a run before Caffe's lines, and of its seed.
OURS = ("Versions: ", "Host: ", "Command line: ", "Folder: ", "Random seed: ")
RUNS = [
    "adagrad",
    "adam",
    "bn_inception",
    "sgd_fixed_frozen",
    "sgd_hdf5_snapshot",
    "sgd_multistep_clip",
    "sgd_poly_itersize",
    "sgd_step_l1",
    "siamese_shared",
]


@pytest.fixture(autouse=True)
def rounded_once() -> Iterator[None]:
    """The same numbers on every processor; `test_golden_steps` has what production computes."""
    with RoundedOnce():
        yield


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the recorded runs and their data, in which snapshots may be written."""
    (tmp_path / "data").symlink_to(GOLDEN / "data")
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fetch(name: str) -> str:
    """Copy what a run needs; returns its folder."""
    folder = Path("runs") / name
    folder.mkdir()
    for file in (GOLDEN / folder).glob("*"):
        if file.suffix == ".prototxt" or file.name.startswith(("init", "snap_iter_20")):
            shutil.copy(file, folder / file.name)
    return str(folder)


def messages(text: str) -> list[str]:
    """The messages of a log; lines without a prefix belong to the one before."""
    found: list[str] = []
    for line in text.splitlines():
        match = PREFIX.match(line)
        if match:
            found.append(line[match.end() :])
        else:
            found[-1] += "\n" + line
    return [SPEED.sub(r" (\1 iters)", message.rstrip()) for message in found]


def in_order(text: str) -> Iterator[str]:
    return (message for message in messages(text) if not message.startswith((*AT_ANY_TIME, *OURS)))


def assert_same_messages(ours: str, theirs: str) -> None:
    """Equal but for the last printed digits of numbers."""
    actual, expected = list(in_order(ours)), list(in_order(theirs))
    wanted, found = ([NUMBER.sub("#", m) for m in side] for side in (expected, actual))
    difference = list(difflib.unified_diff(wanted, found, "Caffe", "dns", lineterm="", n=1))
    assert not difference, "\n".join(difference[:40])
    for mine, theirs in zip(actual, expected, strict=True):
        numbers = [[float(n) for n in NUMBER.findall(side)] for side in (mine, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-9), f"{mine} | {theirs}"


def log(name: str) -> str:
    return (GOLDEN / "logs" / name).read_text()


def test_train(workdir: Path, capfd: Capture) -> None:
    run = fetch("sgd_inv")
    flags = ["--solver", f"{run}/solver.prototxt", "--weights", f"{run}/init.caffemodel"]
    result = run_well(["train", *flags, "--no-surgery"], capfd)
    assert_same_messages(result.err, log("train.log"))
    restarts = [
        messages(text).count(AT_ANY_TIME[0] + " from start.")
        for text in (result.err, log("train.log"))
    ]
    assert restarts[0] == restarts[1] > 0


def test_resume(workdir: Path, capfd: Capture) -> None:
    run = fetch("sgd_inv")
    state = f"{run}/snap_iter_20.solverstate"
    flags = ["--solver", f"{run}/solver.prototxt", "--snapshot", state, "--no-surgery"]
    assert_same_messages(run_well(["train", *flags], capfd).err, log("resume.log"))


def test_test(workdir: Path, capfd: Capture) -> None:
    run = fetch("sgd_inv")
    shutil.copy(GOLDEN / run / "snap_iter_40.caffemodel", run)
    flags = ["--model", f"{run}/train_val.prototxt", "--weights", f"{run}/snap_iter_40.caffemodel"]
    result = run_well(["test", *flags, "--iterations", "10", "--no-surgery"], capfd)
    assert_same_messages(result.err, log("test.log"))


@pytest.mark.parametrize("name", RUNS)
def test_recorded_run(name: str, workdir: Path, capfd: Capture) -> None:
    run = fetch(name)
    flags = ["--solver", f"{run}/solver.prototxt", "--weights", f"{run}/init.caffemodel"]
    result = run_well(["train", *flags, "--no-surgery"], capfd)
    assert_same_messages(result.err, (GOLDEN / run / "caffe.log").read_text())


@pytest.mark.parametrize(
    "name", ["surgery_holmes", "surgery_holmes_itersize", "surgery_holmes_mixed"]
)
def test_recorded_surgery(name: str, workdir: Path, capfd: Capture) -> None:
    """From the first iteration on: the fork builds its nets in an older Caffe's words."""
    run = fetch(name)
    flags = ["--solver", f"{run}/solver.prototxt", "--weights", f"{run}/init.caffemodel"]
    ours = run_well(["train", *flags], capfd).err
    theirs = (GOLDEN / run / "caffe.log").read_text()
    parts = [text[text.index("] Solving ") - 60 :].split("\n", 1)[1] for text in (ours, theirs)]
    own = "\n".join(line for line in parts[0].splitlines() if not OWN.search(line))
    assert_same_messages(own, parts[1])


@pytest.mark.parametrize("name", ["surgery_guo", "surgery_guo_iter_stop"])
def test_recorded_official_surgery(name: str, workdir: Path, capfd: Capture) -> None:
    """Losses and scores; the rest of the log is in an older Caffe's words."""
    run = fetch(name)
    flags = ["--solver", f"{run}/solver.prototxt", "--weights", f"{run}/init.caffemodel"]
    ours = run_well(["train", *flags], capfd).err
    logs = (ours, (GOLDEN / run / "caffe.log").read_text())
    losses = re.compile(r"Iteration \d+.*, loss = |    (Train|Test) net output")
    kept = [
        "\n".join(
            f"I1122 00:00:00.000000 1 a.b:1] {re.sub(r' [(].* iters[)]', '', m)}"
            for m in messages(text)
            if losses.match(m)
        )
        for text in logs
    ]
    assert_same_messages(*kept)
