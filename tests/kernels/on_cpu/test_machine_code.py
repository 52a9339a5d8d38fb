"""The files in which numba keeps machine code are no condition for anything."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

from numba.core.caching import CompileResultCacheImpl, IndexDataCacheFile  # noqa: E402

from caffe_dns import log  # noqa: E402
from caffe_dns.kernels.on_cpu.machine_code import compiled  # noqa: E402


def twice(number: int) -> int:
    return 2 * number


def thrice(number: int) -> int:
    return 3 * number


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said, by a process that has said nothing yet."""
    said: list[str] = []
    monkeypatch.setattr(log, "sink", said.append)
    monkeypatch.setattr(log, "said_once", set())
    return said


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    return tmp_path


def hits() -> int:
    """How often the code was found there by a function that is compiled once more."""
    function = compiled(twice)
    assert function(21) == 42
    return sum(function.stats.cache_hits.values())  # type: ignore[attr-defined]


def test_machine_code_is_kept() -> None:
    assert (hits(), hits()) == (0, 1)


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
@pytest.mark.parametrize("content", [b"", b"damage"])
def test_damaged_files_are_written_anew(ending: str, content: bytes, folder: Path) -> None:
    """numba does not wait for the disk, so a power failure may leave them empty."""
    assert hits() == 0
    (file,) = folder.rglob(f"*.{ending}")
    file.write_bytes(content)
    assert (hits(), hits()) == (0, 1)


def test_nothing_is_kept_on_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(file: IndexDataCacheFile, name: str, data: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(IndexDataCacheFile, "_save_data", fail)
    assert (hits(), hits()) == (0, 0)


def test_a_folder_where_nobody_may_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "/dev/null/none")
    assert compiled(twice)(21) == 42


def test_no_folder_where_anybody_may_write(
    monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(CompileResultCacheImpl, "_locator_classes", [])
    assert compiled(twice)(21) == compiled(twice)(21) == 42
    (line,) = lines
    assert "no folder to keep them in" in line and "NUMBA_CACHE_DIR" in line


def test_it_is_said_once_and_only_where_something_is_compiled(
    folder: Path, lines: list[str]
) -> None:
    hits()
    assert compiled(thrice)(14) == 42
    (line,) = lines
    assert f"Compiling kernels for this processor (kept in {folder}" in line
    log.said_once.clear()
    assert hits() == 1
    assert len(lines) == 1
