"""What a process is told of the ranks that it is one of."""

from __future__ import annotations

import runpy
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.parallel import ranks
from caffe_dns.parallel.ranks import Ranks
from caffe_dns.parallel.world import World, find_world
from tests.parallel.harness import LOCAL
from tests.processes import PATIENCE, Forked

VARIABLES = {
    "RANK": "3",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    return monkeypatch


def test_a_world_stands_in_the_environment(environment: pytest.MonkeyPatch) -> None:
    assert find_world() == World(3, 6, 1, 2, "host", 29500, store_is_kept=False)
    environment.delenv("LOCAL_WORLD_SIZE")
    environment.setenv("RANK", "0")
    assert find_world() == World(0, 6, 1, 6, "host", 29500, store_is_kept=False)
    environment.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert find_world() == World(0, 6, 1, 6, "host", 29500, store_is_kept=True)


def test_a_process_alone_has_no_world(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("RANK")
    assert find_world() is None
    environment.setenv("RANK", "0")
    environment.setenv("WORLD_SIZE", "1")
    environment.delenv("MASTER_ADDR")
    assert find_world() is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MASTER_ADDR", "", "MASTER_ADDR is missing beside RANK and WORLD_SIZE"),
        ("LOCAL_RANK", "", "LOCAL_RANK is missing"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http', not a number"),
        ("WORLD_SIZE", "-2", "WORLD_SIZE is '-2', not a number"),
        ("RANK", "6", "RANK 6 of WORLD_SIZE 6"),
        ("LOCAL_RANK", "2", "LOCAL_RANK 2 of LOCAL_WORLD_SIZE 2"),
    ],
)
def test_variables_that_make_no_sense(
    environment: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(CaffeError, match=message):
        find_world()


def test_tasks_of_a_cluster_are_told_that_each_trains_alone(
    environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("SLURM_STEP_NUM_TASKS", "4")
    environment.setenv("SLURM_PROCID", "2")
    assert find_world() is not None
    assert not capfd.readouterr().err
    environment.delenv("RANK")
    assert find_world() is None
    said = "] This is task 2 of 4 (SLURM_PROCID, SLURM_STEP_NUM_TASKS), and trains by itself: "
    assert said in capfd.readouterr().err
    environment.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert find_world() is None
    assert not capfd.readouterr().err


def test_one_rank_asks_nobody() -> None:
    ranks = Ranks()
    assert ranks.is_root
    assert [ranks.agree(partial(int, answer)) for answer in (0, 2, 1)] == [0, 2, 1]
    assert (ranks.largest(-3), ranks.from_root(7)) == (-3, 7)
    assert ranks.average([]) is None


def wait_for_nobody(words: list[str]) -> None:
    """`dns` as it is started, but for the time after which a rank says that it waits."""
    ranks._SILENCE = 0
    runpy.run_module("caffe_dns", run_name="__main__")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_rank_that_waits_for_others_says_so_and_heeds_signals(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "solver.prototxt").write_text("")
    numbers = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}
    said = tmp_path / "stderr"
    command = ["train", "--solver", "solver.prototxt"]
    name = f"{__name__}:wait_for_nobody"
    rank = Forked(name, command, tmp_path, LOCAL | numbers, said)
    end = time.monotonic() + PATIENCE
    while "] Rank 1 of 2 waits for the others at 127.0.0.1:1 (" not in said.read_text():
        assert rank.poll() is None and time.monotonic() < end, said.read_text()
        time.sleep(0.02)
    rank.send_signal(number)
    assert rank.wait(PATIENCE) == 128 + number
