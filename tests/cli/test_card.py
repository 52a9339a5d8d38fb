"""The head of a training log, the warning before it, and the card at its end."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from caffe_dns import __version__, log
from caffe_dns.cli.card import duration
from caffe_dns.files import temporary_beside
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.solver.snapshot_files import warn_of_overwriting
from tests.cli.harness import run, run_well
from tests.nets import recorded_log
from tests.oracle import GOLDEN
from tests.solver.test_observers import write_solver

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]
RUN = "surgery_holmes"
WEIGHTS = f"runs/{RUN}/init.caffemodel"


def train(folder: Path, capture: Capture, *flags: str, **settings: object) -> tuple[list[str], str]:
    """What a short run logs and shows."""
    short = {"max_iter": 4, "test_interval": 4, "display": 2, "snapshot": 2, "test_iter": 1}
    solver = write_solver(folder, RUN, **{**short, **settings})
    result = run_well(["train", "--solver", solver, *(flags or ("-weights", WEIGHTS))], capture)
    return result.messages, result.out


# The card ---------------------------------------------------------------------------------------


def test_the_card(tmp_path: Path, capfd: Capture) -> None:
    messages, card = train(tmp_path, capfd, test_initialization="true")
    accuracies = [m.rsplit(" ", 1)[1] for m in messages if "Test net output #0: accuracy" in m]
    lines = card.splitlines()
    assert "" not in lines  # Caffe's parse_log.py breaks off at an empty line
    assert re.fullmatch(r"trained     4 iterations in [\d.]+ s, [\d.]+ a second", lines[0])
    assert (
        f"accuracy    {accuracies[0]} before, {accuracies[-1]} after (iterations 0 and 4)" in lines
    )
    (kept,) = (line for line in lines if line.startswith("parameters"))
    scored = run_well(
        [
            *("test", "--model", f"runs/{RUN}/train_val.prototxt", "-iterations=1"),
            *("--weights", f"{tmp_path}/snap_iter_4.caffemodel"),
        ],
        capfd,
    )
    left, total = re.findall(r"Kept in all: (\d+) of (\d+)", scored.err)[0]
    assert f"{int(left):,} of {int(total):,} are left" in kept
    first = next(i for i, line in enumerate(lines) if line.startswith("files"))
    names = [f"snap_iter_{i}.{kind}" for i in (2, 4) for kind in ("caffemodel", "solverstate")]
    last = next(i for i, line in enumerate(lines) if line.startswith("next"))
    listed = [line[12:] for line in lines[first:last]]
    assert [f"{tmp_path}/{name}" for name in names] == listed[:4]
    assert f"{tmp_path}/snap_surgery.csv" in listed
    assert all(Path(name).exists() for name in listed)
    score, shrink = (shlex.split(line[12:]) for line in lines[last:])
    assert score[:2] == ["dns", "test"] and score[-1] == f"{tmp_path}/snap_iter_4.caffemodel"
    run_well([*score[1:], "-iterations", "1"], capfd)
    assert shrink[:2] == ["dns", "export"] and f"{tmp_path}/snap_pruned.caffemodel" in shrink
    run_well(shrink[1:], capfd)


def test_what_an_earlier_run_left_is_not_listed_whatever_its_clock_said(
    tmp_path: Path, capfd: Capture
) -> None:
    earlier, grows = tmp_path / "snap_bits_solver.prototxt", tmp_path / "snap_surgery.csv"
    for file in (earlier, grows):
        file.touch()
        os.utime(file, (2**31, 2**31))
    _, card = train(tmp_path, capfd)
    listed = [line[12:] for line in card.splitlines()]
    assert str(grows) in listed and str(earlier) not in listed


def test_names_tell_the_terminal_nothing(tmp_path: Path, capfd: Capture) -> None:
    """A definition of somebody else's may have anything in them."""
    _, card = train(tmp_path, capfd, snapshot_prefix=f'"{tmp_path}/a\\033[2Jb"')
    assert f"{tmp_path}/a\\x1b[2Jb_iter_4.caffemodel\n" in card and "\x1b" not in card


def test_a_run_whose_card_nobody_takes_is_done(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    solver = write_solver(tmp_path, RUN, max_iter=1, snapshot=0)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "__stdout__", full)
        done = run(["train", "--solver", solver], capfd)
    assert (done.code, done.complaints) == (log.LOST_OUTPUT, [])
    assert (tmp_path / "snap_iter_1.solverstate").exists()


def test_a_run_without_tests_and_snapshots(tmp_path: Path, capfd: Capture) -> None:
    solver = write_solver(tmp_path, RUN, max_iter=1, snapshot=0, snapshot_after_train="false")
    text = re.sub(r"test_(iter|interval|net): \S+", "", Path(solver).read_text())
    Path(solver).write_text(text)
    card = run_well(["train", "--solver", solver, "--no-surgery"], capfd).out
    assert [line.split(" ", 1)[0] for line in card.splitlines()] == ["trained"]


def test_a_run_that_is_stopped(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caffe_dns.solver import signals

    asked = iter([signals.Action.NONE, signals.Action.STOP])
    monkeypatch.setattr(
        signals.SignalHandler, "poll", lambda self: next(asked, signals.Action.NONE)
    )
    _, card = train(tmp_path, capfd, test_interval=100, snapshot=100, max_iter=9)
    assert "; stopped at 2 of 9" in card
    command = shlex.split(card.splitlines()[-1].removeprefix("next        "))
    state = f"{tmp_path}/snap_iter_2.solverstate"
    flags = ["--solver", f"{tmp_path}/solver.prototxt", "--snapshot", state]
    assert command == ["dns", "train", *flags]
    messages = run_well(command[1:], capfd).messages
    assert f"Resuming from {state}" in messages


@pytest.mark.parametrize(
    ("seconds", "text"), [(9.96, "10.0 s"), (60, "1 min 0 s"), (3599.6, "1 h 0 min"), (0, "0.0 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# The head ---------------------------------------------------------------------------------------


def test_the_head(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    messages, _ = train(tmp_path, capfd, random_seed=11, max_iter=1)
    assert re.match(
        rf"Versions: dns {re.escape(__version__)}.*, Python 3\.\d+\.\d+, "
        rf"PyTorch {re.escape(torch.__version__)}, numpy ",
        messages[0],
    )
    assert messages[1].startswith(f"Host: {socket.gethostname()}, ")
    solver = shlex.quote(f"{tmp_path}/solver.prototxt")
    assert messages[2] == f"Command line: dns train --solver {solver} --weights {WEIGHTS}"
    assert messages[3].startswith(f"Folder: {GOLDEN}")
    assert "Random seed: 11 (from random_seed)" in messages


def test_a_drawn_seed_can_be_given(tmp_path: Path, capfd: Capture) -> None:
    def losses(messages: list[str]) -> list[str]:
        return [m.split("loss = ")[1] for m in messages if "Train net output" in m]

    solver = write_solver(tmp_path, RUN, max_iter=2, display=1, snapshot=0)
    Path(solver).write_text(re.sub(r"random_seed: \S+", "", Path(solver).read_text()))
    drawn = run_well(["train", "--solver", solver], capfd).messages
    (line,) = (m for m in drawn if m.startswith("Random seed: "))
    seed = re.fullmatch(
        r"Random seed: (\d+) \(drawn; `random_seed: \1` draws the same again\)", line
    )
    assert seed is not None
    with open(solver, "a") as file:
        file.write(f"\nrandom_seed: {seed[1]}")
    again = run_well(["train", "--solver", solver], capfd).messages
    assert losses(again) == losses(drawn) and losses(drawn)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_state_of_the_folder(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from caffe_dns.cli.provenance import log_head

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=n", "-c", "user.email=e"]
        command = ["git", *settings, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def folder() -> str:
        capfd.readouterr()
        log_head(["train", "--solver", "a b"])
        lines = capfd.readouterr().err.splitlines()
        assert lines[2].endswith("Command line: dns train --solver 'a b'")
        return lines[3].partition("Folder: ")[2]

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert folder() == str(tmp_path)
    git("init", "-q")
    Path("solver.prototxt").write_text("1")
    git("add", ".")
    git("commit", "-qm", "a")
    commit = git("rev-parse", "--short", "HEAD")
    assert folder() == f"{tmp_path} (git {commit})"
    Path("solver.prototxt").write_text("2")
    assert folder() == f"{tmp_path} (git {commit} with changes)"
    # A repository from somebody else runs nothing.
    Path(".gitattributes").write_text("* filter=planted\n")
    Path(".git/hooks").mkdir(exist_ok=True)
    for hook in ("post-index-change", "pre-auto-gc"):
        Path(f".git/hooks/{hook}").write_text("#!/bin/sh\ntouch HOOK\n")
        Path(f".git/hooks/{hook}").chmod(0o755)
    git("config", "core.fsmonitor", "touch FSMONITOR; false")
    assert folder() == f"{tmp_path} (git {commit} with changes)"
    git("config", "filter.planted.clean", "touch FILTER; cat")
    assert folder() == f"{tmp_path} (git {commit})"
    planted = {"HOOK", "FSMONITOR", "FILTER"}
    assert not planted & {path.name for path in tmp_path.iterdir()}
    monkeypatch.setenv("PATH", "")
    assert folder() == str(tmp_path)


# The warning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "warned"),
    [
        ("snap_iter_4.caffemodel", {}, 4),
        ("snap_iter_2.caffemodel", {}, 2),
        ("snap_iter_3.caffemodel", {}, None),
        ("snap_iter_6.caffemodel", {}, None),
        ("snap_iter_2.caffemodel", {"snapshot": 0}, None),
        ("snap_iter_4.caffemodel", {"snapshot": 0}, 4),
        ("snap_iter_4.caffemodel", {"snapshot": 0, "snapshot_after_train": False}, None),
        ("snap_iter_4.caffemodel", {"snapshot_format": 0}, None),
        ("snap_iter_4.caffemodel.h5", {"snapshot_format": 0}, 4),
        ("other_iter_4.caffemodel", {}, None),
    ],
)
def test_weights_that_a_snapshot_replaces(
    name: str,
    settings: dict[str, Any],
    warned: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    Path("link").symlink_to(tmp_path)  # the same file by another name
    param = SolverParameter(**{"max_iter": 4, "snapshot": 2, "snapshot_prefix": "snap", **settings})
    with recorded_log() as messages:
        warn_of_overwriting(param, ["none.caffemodel", f"link/{name}"], 0)
    line = (
        f"link/{name} will be replaced by the snapshot of iteration {warned}; copy it, or give "
        "the solver another snapshot_prefix"
    )
    assert messages == ([line] if warned else [])
    with recorded_log() as messages:  # a run that begins after it
        warn_of_overwriting(param, [f"link/{name}"], 4)
    assert not messages


def test_the_warning_comes_before_training(tmp_path: Path, capfd: Capture) -> None:
    weights = tmp_path / "snap_iter_1.caffemodel"
    shutil.copy(WEIGHTS, weights)
    messages, _ = train(tmp_path, capfd, "--weights", str(weights), max_iter=1, snapshot=0)
    (at,) = (number for number, message in enumerate(messages) if "will be replaced" in message)
    assert at < messages.index("Starting Optimization")


def test_another_training_with_the_prefix_is_named(tmp_path: Path, capfd: Capture) -> None:
    mine, other = str(os.getpid()), str(os.getppid())
    mark = temporary_beside(tmp_path / "snap").name.replace(f".{mine}.", f".{other}.")
    (tmp_path / mark).touch()
    messages, _ = train(tmp_path, capfd)
    assert [
        message
        for message in messages
        if message.startswith(f"Process {other} seems to train with")
    ]
    messages, _ = train(tmp_path, capfd, snapshot=0, snapshot_after_train="false")
    assert not [message for message in messages if message.startswith("Process")]
    assert [path.name for path in tmp_path.glob(".*")] == [mark]
