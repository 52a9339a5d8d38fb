"""tools/reliability/kill_resume finds no difference, and would find one."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

from tests.processes import Forked

TOOL = Path(__file__).resolve().parents[1] / "tools/reliability/kill_resume"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("kill_resume", str(TOOL))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, loader.name, module)
    loader.exec_module(module)
    return module


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

    monkeypatch.setattr(tool.Runner, "start_process", start)
    monkeypatch.setattr(tool, "kill_group", Forked.kill)
    monkeypatch.setattr(
        sys, "argv", ["tool", "--kills", "1", "--only", case, "--ranks", str(ranks)]
    )
    assert tool.main() == 0
    assert capsys.readouterr().out.endswith("1 kills, 0 of 1 cases differ\n")


@pytest.mark.slow
def test_processes_that_are_started_anew() -> None:
    command = [sys.executable, str(TOOL), "--kills", "1", "--only", "adam"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("1 kills, 0 of 1 cases differ\n")


def test_differences_are_found(tool: ModuleType, tmp_path: Path) -> None:
    whole, other = tmp_path / "whole", tmp_path / "other"
    for folder, content in ((whole, b"one"), (other, b"two")):
        folder.mkdir()
        (folder / f"s_iter_{tool.ITERATIONS}.caffemodel").write_bytes(content)
    (other / ".s_iter_10.caffemodel.tmp").touch()
    model = f"s_iter_{tool.ITERATIONS}.caffemodel"
    assert tool.compare(whole, other) == [model, ".s_iter_10.caffemodel.tmp"]
    assert tool.compare(whole, whole) == []
