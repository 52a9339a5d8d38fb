"""Starting a process for each GPU. Here they train on the CPU: the definition says so."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote

import pytest
import torch

from caffe_dns.cli import launch as launching
from caffe_dns.cli.actions import train
from caffe_dns.cli.launch import launch
from caffe_dns.log import LOST_OUTPUT
from caffe_dns.proto.caffe_pb2 import SolverState
from tests.cli.harness import complaint, run_well
from tests.parallel.harness import LOCAL
from tests.processes import PATIENCE, Forked
from tests.solver.harness import small_net

ARGUMENTS = ["train", "--solver", "solver.prototxt"]
Capture = pytest.CaptureFixture[str]
Children = list[Forked]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a run of two iterations."""
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, LOCAL[name])
    (tmp_path / "net.prototxt").write_text(small_net())
    write_solver(tmp_path, "max_iter: 2")


def write_solver(folder: Path, settings: str) -> None:
    (folder / "solver.prototxt").write_text(
        "net: 'net.prototxt' snapshot_prefix: 'snap' solver_mode: CPU base_lr: 1e-4 "
        f"lr_policy: 'fixed' {settings}"
    )


def write_endless_solver(folder: Path) -> None:
    write_solver(folder, "max_iter: 1000000 snapshot: 20")


def when(path: Path, act: Callable[[], object]) -> None:
    """Act as soon as there is such a file."""

    def watch() -> None:
        end = time.monotonic() + PATIENCE
        while not path.exists() and time.monotonic() < end:
            time.sleep(0.02)
        act()

    threading.Thread(target=watch, daemon=True).start()


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    """The ranks that are started: forked, with logs of their own."""
    started: Children = []

    def start(arguments: list[str], environment: dict[str, str]) -> Forked:
        log = tmp_path / f"rank{len(started)}.log"
        started.append(
            Forked("caffe_dns.cli.main:main", arguments, tmp_path, environment, stderr=log)
        )
        return started[-1]

    monkeypatch.setattr(launching, "_start", start)
    return started


def test_ranks_train_to_the_end(tmp_path: Path, capfd: Capture) -> None:
    assert launch(ARGUMENTS, [0, 1]) == 0
    state = SolverState.FromString((tmp_path / "snap_iter_2.solverstate").read_bytes())
    assert [p.records for p in state.data_position] == [2 * 2 * 16]
    said = capfd.readouterr().err
    assert said.count("] Solving small") == said.count("] Use CPU.") == 1
    assert said.rstrip().endswith("Optimization Done.")


def test_a_rank_that_dies_ends_the_others(
    tmp_path: Path, capfd: Capture, children: Children
) -> None:
    write_endless_solver(tmp_path)
    when(tmp_path / "snap_iter_20.solverstate", lambda: children[1].kill())
    assert launch(ARGUMENTS, [3, 5]) == 1
    assert children[0].returncode is not None
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "dns: rank 1 (GPU 5) was killed by SIGKILL, so all ranks end"


@pytest.mark.usefixtures("children")
def test_what_is_wrong_is_said_once(tmp_path: Path, capfd: Capture) -> None:
    write_solver(tmp_path, "max_iter: 2 type: 'Newton'")
    assert launch(ARGUMENTS, [0, 1]) == 1
    said = capfd.readouterr().err + "".join(
        (tmp_path / f"rank{rank}.log").read_text() for rank in range(2)
    )
    complaints = [line for line in said.splitlines() if line.startswith("dns: ")]
    assert len(complaints) == 1
    assert "Newton" in complaints[0]


def end_with_7(_: list[str]) -> None:
    """A rank that says nothing."""
    time.sleep(1)
    os._exit(7)


@pytest.mark.usefixtures("children")
def test_a_rank_that_ends_on_its_own_is_named(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_endless_solver(tmp_path)
    start = launching._start

    def start_but_the_first(arguments: list[str], environment: dict[str, str]) -> Forked:
        if environment["RANK"] != "0":
            return start(arguments, environment)  # type: ignore[return-value]
        log = tmp_path / "rank0.log"
        return Forked("tests.cli.test_launch:end_with_7", [], tmp_path, environment, log)

    monkeypatch.setattr(launching, "_start", start_but_the_first)
    assert launch(ARGUMENTS, [3, 5]) == 7
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "dns: rank 0 (GPU 3) ended with exit code 7, so all ranks end"


def test_a_rank_that_lost_lines_ends_no_other(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = tmp_path / "done"
    ranks = iter([f"exit {LOST_OUTPUT}", f"sleep 0.5; touch {quote(str(done))}"])
    monkeypatch.setattr(launching, "_start", lambda *_: subprocess.Popen(["sh", "-c", next(ranks)]))
    assert launch(ARGUMENTS, [0, 1]) == LOST_OUTPUT
    assert done.exists() and capfd.readouterr().err == ""


@pytest.mark.usefixtures("children")
def test_signals_go_to_rank_0(tmp_path: Path) -> None:
    write_endless_solver(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    when(tmp_path / "snap_iter_20.solverstate", lambda: os.kill(os.getpid(), signal.SIGINT))
    assert launch(ARGUMENTS, [0, 1]) == 0
    assert "] Optimization stopped early." in (tmp_path / "rank0.log").read_text()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("children")
def test_sigterm_lets_all_ranks_end_with_a_snapshot(tmp_path: Path, capfd: Capture) -> None:
    write_endless_solver(tmp_path)
    when(tmp_path / "snap_iter_20.solverstate", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert launch(ARGUMENTS, [0, 1]) == 128 + signal.SIGTERM
    said = capfd.readouterr().err + (tmp_path / "rank0.log").read_text()
    assert "] Optimization stopped early." in said
    assert "dns: " not in said
    last = max(int(path.stem.split("_")[-1]) for path in tmp_path.glob("snap_iter_*.solverstate"))
    assert f"Snapshotting solver state to binary proto file snap_iter_{last}.solverstate" in said


def test_a_signal_while_ranks_are_started_waits_for_rank_0(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even Python's own start loses it; rank 0 has nothing to save then.

    Here it comes to a thread in which signals are not blocked, as libraries have them.
    """
    done = threading.Event()
    threading.Thread(target=done.wait, daemon=True).start()
    start = launching._start

    def start_and_interrupt(*arguments: object) -> subprocess.Popen[bytes]:
        process = start(*arguments)  # type: ignore[arg-type]
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)  # for the other thread to take it before this one knows of rank 0
        return process

    monkeypatch.setattr(launching, "_start", start_and_interrupt)
    assert launch(ARGUMENTS, [0, 1]) == 130
    done.set()
    assert not capfd.readouterr().err


def launch_two(_: list[str]) -> None:
    """What `test_no_rank_outlives_the_launcher` kills: a launcher of forked ranks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launching, "_start", _start_noted)
        launch(ARGUMENTS, [0, 1])


def _start_noted(arguments: list[str], environment: dict[str, str]) -> Forked:
    """A rank with a log of its own, and beside it a file with its process id."""
    log = Path(f"rank{environment['RANK']}.log")
    rank = Forked("caffe_dns.cli.main:main", arguments, Path(), environment, stderr=log)
    log.with_suffix(".pid").write_text(str(rank.pid))
    return rank


def test_no_rank_outlives_the_launcher(tmp_path: Path) -> None:
    write_endless_solver(tmp_path)
    parent = Forked(f"{__name__}:launch_two", [], tmp_path, LOCAL, tmp_path / "launcher.log")
    await_that((tmp_path / "snap_iter_20.solverstate").exists)
    parent.kill()
    parent.wait(PATIENCE)
    for rank in range(2):
        number = int((tmp_path / f"rank{rank}.pid").read_text())
        await_that(partial(is_gone, number))
    said = "".join((tmp_path / f"rank{rank}.log").read_text() for rank in range(2))
    assert "dns: what started the ranks is gone" in said


def await_that(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def is_gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


# The flag -----------------------------------------------------------------------------------------


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("flag", "gpus"), [("-gpu=0,2", [0, 2]), ("-gpu=all", [0, 1, 2, 3]), ("--gpu=3,1", [3, 1])]
)
def test_several_gpus_are_launched(
    flag: str, gpus: list[int], monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    launched = []

    def note(arguments: list[str], gpus: list[int]) -> int:
        launched.append((arguments, gpus))
        return 0

    monkeypatch.setattr(train, "launch", note)
    run_well([*ARGUMENTS, flag, "--no-surgery=true"], capfd)
    assert launched == [([*ARGUMENTS, f"--gpu={flag.split('=')[1]}", "--no-surgery"], gpus)]


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("0,1,0", "dns: -gpu 0,1,0: GPU 0 is named twice"),
        ("0,4", "dns: -gpu 0,4: no GPU 4; there are 4 that PyTorch can use"),
        ("0,-1", "dns: -gpu: '0,-1' is not a device id, several with commas, or 'all'"),
        ("0,", "dns: -gpu: '0,' is not a device id, several with commas, or 'all'"),
    ],
)
def test_gpus_that_cannot_be(flag: str, message: str, capfd: Capture) -> None:
    assert complaint([*ARGUMENTS, f"-gpu={flag}"], capfd) == message


def test_ctrl_z_stops_the_ranks_until_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    class Rank:
        def send_signal(self, number: int) -> None:
            sent.append(number)

    monkeypatch.setattr(os, "kill", lambda process, number: sent.append((process, number)))
    with launching._signals_to([Rank(), Rank()]):  # type: ignore[list-item]
        signal.raise_signal(signal.SIGTSTP)
    stopped = (os.getpid(), signal.SIGSTOP)
    assert sent == [signal.SIGSTOP] * 2 + [stopped] + [signal.SIGCONT] * 2
    assert signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL
