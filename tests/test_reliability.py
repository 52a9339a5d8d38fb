"""The programs of tools/reliability find nothing, and would find something."""

from __future__ import annotations

import mmap
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import run_python
from tests.programs import TOOLS, load, run
from tests.solver.rules import parse


def test_signals_are_heeded_at_the_start_and_while_data_are_waited_for() -> None:
    said = run("reliability/signals", "--starts", "1", "--seconds", "1", "--only", "twice")
    assert said.startswith("twice              as documented\n1 starts: 0 signals lost, 0 wrong")


def test_a_lost_signal_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load("reliability/signals", monkeypatch)
    monkeypatch.setattr(tool, "PATIENCE", 0.2)
    (tmp_path / "log").write_text("Traceback\n  caffe_dns/log.py")
    (tmp_path / ".s_iter_1.tmp").touch()
    deaf = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    one = tool.Run(tmp_path, [deaf])
    assert tool.judge(one, 0, snapshot=True) == [
        "exit code None, not 0",
        "no snapshot",
        "traceback, whose log ends with 'Traceback\\n  caffe_dns/log.py'",
        "temporary files",
    ]
    assert deaf.returncode == -signal.SIGKILL


def test_a_run_is_watched(tmp_path: Path) -> None:
    """Of so short a run nothing is asked but that it is seen."""
    flags = ["--batch", "2", "--settle", "0", "--most", "1e12", "--table", f"{tmp_path}/table"]
    said = run("reliability/long_run", "--iterations", "201", *flags)
    assert said.startswith("201 iterations, ")
    head, *rows = (tmp_path / "table").read_text().splitlines()
    assert head == "iteration,memory,gpu_memory,files,threads"
    assert all(int(row.split(",")[1]) > 1 << 20 for row in rows)
    assert os.listdir(tmp_path) == ["table"]


def test_growth_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load("reliability/long_run", monkeypatch)
    samples = [tool.Sample(i, 1000000 + 5 * i, 0, 7, 3) for i in range(0, 1000, 100)]
    assert tool.slope(samples, "memory") == pytest.approx(5000)
    assert tool.slope(samples, "threads") == pytest.approx(0)
    assert tool.slope(samples[:1], "memory") == 0


def test_what_is_wrong_with_a_mutant_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load("reliability/mutants", monkeypatch)

    def read(path: str) -> str | None:
        if Path(path).read_bytes() == b"good":
            return None
        raise ZeroDivisionError

    def damage(good: bytes, draw: random.Random) -> bytes:
        return good if draw.random() < 0.5 else b"bad"

    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept"
    workers = tool.Workers({"some": tool.Format(b"good", "file.x", damage, read)}, 1, 1, kept)
    outcome = workers.try_portion("some", range(10, 30))
    assert outcome.codes.total() == 20
    assert 0 < outcome.codes[tool.READ] == 20 - outcome.codes[tool.TRACEBACK] < 20
    assert list(outcome.kinds) == ["traceback at ?: ZeroDivisionError"]
    assert [path.read_bytes() for path in kept.iterdir()] == [b"bad"]


def test_portions_are_read_in_folders_of_their_own(tmp_path: Path) -> None:
    flags = ["--only", "mean,datum", "--jobs", "2"]
    *rows, last = run("reliability/mutants", "--count", "51", *flags).splitlines()
    assert [row.split()[:3] for row in rows] == [["mean", "51", "tried"], ["datum", "51", "tried"]]
    assert last == "102 tried, 0 wrong"


def test_memory_gives_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(
        "reliability/little_memory", "--first", "99999", "--last", "99999", "--only", "train"
    )
    assert re.fullmatch(r"train +1 tried, 1 with code 0; 0 wrong", said.strip())
    tool = load("reliability/little_memory", monkeypatch)
    (tmp_path / ".x.tmp").touch()
    wrong = ["exit code -11", "traceback", "left .x.tmp"]
    assert tool.problems(-11, "Traceback", tmp_path) == wrong
    assert tool.problems(1, "", tmp_path) == ["0 lines of complaint", "left .x.tmp"]


def test_a_seed_that_diverges_is_counted(tmp_path: Path) -> None:
    (tmp_path / "net").write_text(
        """layer { name: "in" type: "DummyData" top: "data" dummy_data_param {
  shape { dim: 4 dim: 3 } data_filler { type: "gaussian" } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "data" top: "loss" }"""
    )
    for name, rate in (("sound", 0.01), ("wild", 1e9)):
        (tmp_path / name).write_text(
            f'net: "{tmp_path}/net" base_lr: {rate} lr_policy: "fixed" display: 50 max_iter: 100 '
            "surgery_stage { iterations: 100 sparsity: 0.5 end_iter: 90 }"
        )
    program = str(TOOLS / "reliability" / "seeds")
    solvers = [f"{tmp_path}/sound", f"{tmp_path}/wild"]
    flags = ["--seeds", "2", "--iterations", "11"]  # which is less than the stage says
    done = run_python(program, *solvers, *flags)
    assert done.returncode == 1, done.stderr
    sound, wild, *seeds = done.stdout.splitlines()
    assert sound.startswith(f"{tmp_path}/sound: 2 seeds, 0 diverge, last losses ")
    assert wild == f"{tmp_path}/wild: 2 seeds, 2 diverge"
    assert [re.sub("dns: .*diverged.*", "said", seed) for seed in seeds] == [
        f"    seed {seed}, exit code 1: said" for seed in (1, 2)
    ]


def test_a_schedule_is_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load("reliability/seeds", monkeypatch)
    solver = parse(
        """base_lr: 0.1 max_iter: 1000 stepvalue: 400 stepvalue: 5 warmup_iter: 100 display: 70
        surgery_stage { iterations: 600 start_iter: 0 end_iter: 300 interval: 5 steepness: 3
          solver { stepsize: 50 } }
        surgery_stage { iterations: 400 }"""
    )
    tool.shorten(solver, 10)
    assert solver == parse(
        """base_lr: 0.1 max_iter: 100 stepvalue: 40 stepvalue: 1 warmup_iter: 10 display: 70
        surgery_stage { iterations: 60 start_iter: 0 end_iter: 30 interval: 1 steepness: 3
          solver { stepsize: 5 } }
        surgery_stage { iterations: 40 }"""
    )


def test_large_texts_are_read_and_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load("reliability/large_texts", monkeypatch)
    for name in tool.KINDS:
        tool.try_kind(name, 3000, tmp_path)
    rows = capsys.readouterr().out.splitlines()
    assert [row.split()[0] for row in rows[::2]] == list(tool.KINDS)
    layers = {row.split()[0]: int(row.split()[3]) for row in rows}
    assert layers["relus"] == 3000 // len(tool.RELU) and layers["dims"] == 1


def test_what_takes_too_much_for_a_text_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = load("reliability/large_texts", monkeypatch)
    readings = iter([tool.Reading(0, 1.0, 100), tool.Reading(0, 7.0, 300 << 20)])
    monkeypatch.setattr(tool, "read", lambda path: next(readings))
    assert tool.try_kind("blanks", 1000, tmp_path) == [
        "blanks: time grows faster than the size",
        "blanks: too much memory",
    ]
    monkeypatch.setattr(tool, "read", lambda path: tool.Reading(20_000, 5.1, 0))
    assert tool.try_many_layers(tmp_path) == ["20000 layers take more than 5 s"]


def test_a_kind_of_text_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tool = load("reliability/large_texts", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["large_texts", "--only", "dims,verses"])
    with pytest.raises(SystemExit, match="2"):
        tool.main()
    assert "--only: there is no kind verses" in capsys.readouterr().err


def test_files_of_one_thing_are_given_to_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load("reliability/extremes", monkeypatch)
    assert all(1000 <= len(kind.content(2000)) <= 80_000 for kind in tool.KINDS.values())
    for name in ("digits", "boxes", "open_tags"):
        outcome = tool.try_kind(name, ["net", "xml", "txt"], 2000)
        assert outcome.tried == 3 and not outcome.wrong
    monkeypatch.setitem(tool.READS, "net", lambda path: [][0])
    monkeypatch.setitem(tool.READS, "txt", take_400_mb)
    failed, large = tool.try_kind("digits", ["net", "txt"], 2000).wrong
    assert failed == "net of digits: IndexError: list index out of range"
    said = re.fullmatch(r"txt of digits: (\d+) MB", large)
    assert said is not None and 300 <= int(said[1]) <= 420


def take_400_mb(path: str) -> None:
    """From the kernel: a heap may have as much left of the tests before."""
    size = 400 << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        for place in range(0, size, mmap.PAGESIZE):
            block[place] = 1
