"""tools/reliability/write_faults: each write of a command may fail; `--most 0` tries them all."""

from __future__ import annotations

import shutil
import sys
from types import ModuleType

import pytest

from tests import programs

PROGRAM = "reliability/write_faults"
needs_compiler = pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler, and Linux"
)


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return programs.load(PROGRAM, monkeypatch)


@needs_compiler
def test_a_few_cases() -> None:
    names = "train,hdf5_output,convert_imageset,convert_imageset_leveldb"
    said = programs.run(PROGRAM, "--most", "2", "--only", names)
    assert said.endswith("8 cases, 0 wrong\n")


@needs_compiler
@pytest.mark.slow
def test_every_command() -> None:
    assert programs.run(PROGRAM, "--most", "16").endswith(" 0 wrong\n")


def test_a_library_without_effect_is_found(tool: ModuleType) -> None:
    class Idle:
        def run(self, *_: object) -> object:
            return tool.End(0, "", {"x": b"whole"})

        def operations(self) -> list[str]:
            return []

    (wrong,) = tool.try_command(Idle(), ["train"], 0, 1).wrong
    assert wrong.startswith("no operation is seen")


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
