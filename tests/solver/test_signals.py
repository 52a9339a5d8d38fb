"""Real signals, in this process and to a training run of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from caffe_dns import interrupt
from caffe_dns.errors import CaffeError
from caffe_dns.solver.signals import Action, SignalHandler, parse_action
from tests.processes import PATIENCE, Forked
from tests.solver.harness import make_solver, small_net

ROOT = Path(__file__).parents[2]


def send(*numbers: signal.Signals) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def test_effects_by_default() -> None:
    with SignalHandler() as handler:
        assert handler.poll() is Action.NONE
        send(signal.SIGINT)
        assert handler.poll() is Action.STOP
        send(signal.SIGHUP)
        assert handler.poll() is Action.SNAPSHOT
        assert handler.poll() is Action.NONE


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("effect", list(Action))
def test_effects_can_be_chosen(number: signal.Signals, effect: Action) -> None:
    chosen = {signal.SIGINT: Action.NONE, signal.SIGHUP: Action.NONE, number: effect}
    with SignalHandler(chosen[signal.SIGINT], chosen[signal.SIGHUP]) as handler:
        send(number)
        assert handler.poll() is effect
        assert handler.poll() is Action.NONE


def test_several_at_once_come_one_after_the_other() -> None:
    with SignalHandler() as handler:
        send(signal.SIGINT, signal.SIGHUP, signal.SIGHUP)
        assert [handler.poll() for _ in range(3)] == [Action.SNAPSHOT, Action.STOP, Action.NONE]


def test_handlers_are_put_back() -> None:
    numbers = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with SignalHandler():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert [signal.getsignal(number) for number in numbers] == before


def test_sigterm_stops_with_an_exit_code_of_its_own() -> None:
    with SignalHandler(Action.NONE) as handler:
        send(signal.SIGHUP, signal.SIGINT)
        assert handler.exit_code == 0
        send(signal.SIGTERM, signal.SIGTERM)
        assert [handler.poll() for _ in range(4)] == [
            Action.SNAPSHOT,
            Action.NONE,
            Action.STOP,
            Action.NONE,
        ]
        assert handler.exit_code == 128 + signal.SIGTERM


def test_sigterm_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with SignalHandler() as handler:
            send(signal.SIGTERM)
            assert handler.poll() is Action.NONE
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_sigint_ends_a_run_that_is_stopping(
    first: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(interrupt, "end", ended.append)
    with SignalHandler() as handler:
        send(first)
        assert handler.poll() is Action.STOP
        assert not ended
        send(signal.SIGINT)
    assert ended == [signal.SIGINT]


def test_what_was_noted_before_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupt, "noted", [signal.SIGHUP])
    with SignalHandler() as handler:
        assert handler.poll() is Action.SNAPSHOT
        assert handler.poll() is Action.NONE
    assert not interrupt.noted


def test_effects_by_name() -> None:
    assert [parse_action(name, "x") for name in ("none", "stop", "snapshot")] == list(Action)
    with pytest.raises(
        CaffeError, match="-sigint_effect: unknown effect 'halt'; known: none, stop"
    ):
        parse_action("halt", "sigint_effect")


def test_a_solver_that_is_interrupted_stops_with_a_snapshot(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "snapshot_after_train: true")
    solver.on_iteration = lambda: send(signal.SIGINT) if solver.iteration == 2 else None
    with SignalHandler() as handler:
        solver.poll = handler.poll
        solver.solve()
    solver.close()
    assert solver.iteration == 3
    assert (tmp_path / "snap_iter_3.solverstate").exists()


# A run of its own ---------------------------------------------------------------------------------


class Run:
    """`dns train` of a long run, forked or from its very start, with its log."""

    process: Forked | subprocess.Popen[bytes]

    def __init__(self, folder: Path, *flags: str, forked: bool = True) -> None:
        (folder / "net.prototxt").write_text(small_net())
        text = (
            f"net: '{folder}/net.prototxt' snapshot_prefix: '{folder}/snap' solver_mode: CPU "
            "base_lr: 1e-4 lr_policy: 'fixed' max_iter: 1000000 display: 20"
        )
        (folder / "solver.prototxt").write_text(text)
        self.log = folder / "log"
        words = ["train", "--solver", "solver.prototxt", *flags]
        if forked:
            self.process = Forked("caffe_dns.cli.main:main", words, folder, {}, stderr=self.log)
            return
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "caffe_dns", *words], cwd=folder, stderr=log
            )

    def wait_for(self, condition: Callable[[str], object]) -> str:
        """Wait until the log meets a condition; returns it."""
        end = time.monotonic() + PATIENCE
        while not condition(text := self.log.read_text()):
            assert self.process.poll() is None, text[-1000:]
            assert time.monotonic() < end, text[-1000:]
            time.sleep(0.02)
        return text

    def iterations(self, text: str) -> list[int]:
        return [int(n) for n in re.findall(r"Iteration (\d+), lr", text)]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(*flags: str, forked: bool = True) -> Run:
        runs.append(Run(tmp_path, *flags, forked=forked))
        return runs[-1]

    yield start
    for one in runs:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait()


def test_a_run_snapshots_on_sighup_and_stops_on_sigint(
    run: Callable[..., Run], tmp_path: Path
) -> None:
    training = run()
    training.wait_for(lambda text: "Iteration 20, lr" in text)
    training.process.send_signal(signal.SIGHUP)
    text = training.wait_for(lambda text: "Snapshotting solver state" in text)
    snapped = int(re.findall(r"snap_iter_(\d+)\.solverstate", text)[0])
    training.wait_for(lambda text: training.iterations(text)[-1] > snapped)
    training.process.send_signal(signal.SIGINT)
    assert training.process.wait(PATIENCE) == 0
    text = training.log.read_text()
    states = [int(n) for n in re.findall(r"snap_iter_(\d+)\.solverstate", text)]
    assert len(states) == 2
    assert states[0] < states[1]
    assert text.rstrip().endswith("Optimization Done.")
    assert "] Optimization stopped early." in text
    for state in states:
        assert (tmp_path / f"snap_iter_{state}.caffemodel").exists()
        assert (tmp_path / f"snap_iter_{state}.solverstate").exists()
    assert not list(tmp_path.glob(".*tmp"))


def test_effects_are_flags(run: Callable[..., Run], tmp_path: Path) -> None:
    training = run("-sigint_effect", "none", "-sighup_effect=stop")
    training.wait_for(lambda text: "Iteration 20, lr" in text)
    training.process.send_signal(signal.SIGINT)
    last = training.iterations(training.log.read_text())[-1]
    training.wait_for(lambda text: training.iterations(text)[-1] > last + 20)
    assert not list(tmp_path.glob("snap_iter*"))
    training.process.send_signal(signal.SIGHUP)
    assert training.process.wait(PATIENCE) == 0
    assert len(list(tmp_path.glob("snap_iter*.solverstate"))) == 1


def test_sigterm_ends_a_run_with_a_snapshot(run: Callable[..., Run], tmp_path: Path) -> None:
    training = run()
    training.wait_for(lambda text: "Iteration 20, lr" in text)
    training.process.send_signal(signal.SIGTERM)
    assert training.process.wait(PATIENCE) == 143
    assert len(list(tmp_path.glob("snap_iter*.solverstate"))) == 1
    assert "Traceback" not in training.log.read_text()


def test_a_signal_before_training_ends_without_a_word(run: Callable[..., Run]) -> None:
    training = run(forked=False)
    while training.process.poll() is None:
        time.sleep(0.3)  # Python itself begins, which ignores it in a background shell, and imports
        training.process.send_signal(signal.SIGINT)
    assert training.process.wait() in (130, -signal.SIGINT)
    assert "Iteration" not in training.log.read_text()
