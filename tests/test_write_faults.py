"""tools/reliability/write_faults: each write of a command may fail; `--most 0` tries them all."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[1] / "tools/reliability/write_faults"
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler, and Linux"
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = SourceFileLoader("write_faults", str(TOOL))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, loader.name, module)
    loader.exec_module(module)
    return module


def run(*flags: str) -> str:
    """What the tool prints; it has to find nothing."""
    command = [sys.executable, str(TOOL), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_compiler
def test_a_few_cases() -> None:
    names = "train,hdf5_output,convert_imageset,convert_imageset_leveldb"
    assert run("--most", "6", "--only", names).endswith("24 cases, 0 wrong\n")


@needs_compiler
@pytest.mark.slow
def test_every_command() -> None:
    assert run("--most", "16").endswith(" 0 wrong\n")


def test_what_is_wrong_is_found(tool: ModuleType) -> None:
    earlier, whole = {"x": b"earlier"}, {"x": b"whole", "y": b"whole"}
    line = "dns: out/x: cannot be written: No space left on device"

    def found(code: int, said: str, files: dict[str, bytes]) -> list[str]:
        result: list[str] = tool.problems(tool.End(code, said, files), whole, earlier, set())
        return result

    assert found(1, line, earlier) == []
    assert found(0, "", whole) == []
    assert found(1, line, {"x": b"who"}) == ["x is neither the earlier file nor the whole one"]
    assert found(1, line, {**earlier, ".x.tmp": b""}) == ["left .x.tmp"]
    assert found(1, line, {}) == ["there is no x"]
    assert found(0, "", {"x": b"whole"}) == ["there is no y"]
    assert found(1, "", earlier) == ["0 lines of complaint"]
    assert found(1, "dns: cannot be written", earlier) == ["the complaint names no file"]
    assert found(-11, line, earlier) == ["exit code -11"]
    assert found(1, f"Traceback\n{line}", earlier) == ["traceback"]
