"""tools/reliability/kill_resume finds no difference, and would find one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests import programs
from tests.processes import Forked

PROGRAM = "reliability/kill_resume"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return programs.load(PROGRAM, monkeypatch)


@pytest.mark.parametrize(("case", "ranks"), [("adam", 1), ("sgd", 2)])
def test_a_killed_run_ends_where_the_whole_one_does(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
    ranks: int,
) -> None:
    def start(
        _: object, arguments: list[str], folder: Path, log: str, more: dict[str, str]
    ) -> Forked:
        return Forked("caffe_dns.cli.main:main", arguments, folder, more, folder / log)

    short = tool.SOLVER.replace(f"max_iter: {tool.ITERATIONS}", "max_iter: 30")
    for name, value in (("SOLVER", short), ("ITERATIONS", 30), ("LONGEST_LIFE", 0.5)):
        monkeypatch.setattr(tool, name, value)
    monkeypatch.setattr(tool.Runner, "start_process", start)
    monkeypatch.setattr(tool, "kill_group", Forked.kill)
    monkeypatch.setattr(
        sys, "argv", ["tool", "--kills", "1", "--only", case, "--ranks", str(ranks)]
    )
    assert tool.main() == 0
    assert capsys.readouterr().out.endswith("1 kills, 0 of 1 cases differ\n")


@pytest.mark.slow
def test_processes_that_are_started_anew() -> None:
    said = programs.run(PROGRAM, "--kills", "1", "--only", "adam")
    assert said.endswith("1 kills, 0 of 1 cases differ\n")


def test_differences_are_found(tool: ModuleType, tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder, content in ((whole, b"one"), (other, b"two")):
        folder.mkdir()
        (folder / f"s_iter_{tool.ITERATIONS}.caffemodel").write_bytes(content)
    (other / ".s_iter_10.caffemodel.tmp").touch()
    model = f"s_iter_{tool.ITERATIONS}.caffemodel"
    assert tool.compare(whole, other) == [model, ".s_iter_10.caffemodel.tmp"]
    assert tool.compare(whole, whole) == []
