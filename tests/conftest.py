"""Settings of all tests."""

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

# Small tensors gain nothing from more threads, and two test runs side by side would wait for each
# other. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Processes that tests start find this tree wherever they run, and packages where this one has them.
_path = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
os.environ["PYTHONPATH"] = os.pathsep.join(_path)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What importing all tests makes is no garbage: do not look for it there, then or later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.fixture
def in_golden_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder is that of the recorded cases, where the paths in their files begin."""
    monkeypatch.chdir(Path(__file__).parent / "golden")


#: What is compiled for the tests of this folder is compiled once in each process.
TOGETHER = "tests/sparse/"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadfile`, have the files of that folder go to one process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return TOGETHER if file.startswith(TOGETHER) else file

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None
