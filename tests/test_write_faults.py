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


def test_a_side_file_that_is_lost_needs_a_warning_and_its_code(tool: ModuleType) -> None:
    whole = dict.fromkeys(["s.caffemodel", "s_surgery.csv", "board", "board/events"], b"whole")
    table = "W1130 08:00:00.0 1 a.py:8] out/s_surgery.csv: so and so; nothing more is written there"
    board = table.replace("s_surgery.csv", "board")

    def found(code: int, said: str, *without: str) -> list[str]:
        files = {name: content for name, content in whole.items() if name not in without}
        result: list[str] = tool.problems(tool.End(code, said, files), whole, {}, set())
        return result

    assert found(74, table, "s_surgery.csv") == found(74, board, "board/events") == []
    assert found(74, f"{table}\n{board}", "s_surgery.csv", "board/events") == []
    assert found(74, "", "s_surgery.csv") == ["exit code 74", "there is no s_surgery.csv"]
    assert found(0, table, "s_surgery.csv") == ["exit code 0 with 1 warnings"]
    assert found(74, f"{table}\n{table}") == ["exit code 74 with 2 warnings"]
    assert found(74, table, "board/events") == ["there is no board/events"]
    assert found(74, table, "s.caffemodel") == ["there is no s.caffemodel"]
