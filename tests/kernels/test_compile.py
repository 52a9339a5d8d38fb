"""Every kernel compiles for a GPU, whether there is one or not."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

import caffe_dns.kernels
from tests.processes import run_python


# Not imported: the other tests say before how it is to run.
@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(
    "flags",
    [
        pytest.param((), id="pairs of settings"),
        pytest.param(("--all",), id="all settings", marks=pytest.mark.slow),
    ],
)
def test_every_kernel_compiles(tmp_path: Path, flags: tuple[str, ...]) -> None:
    words = ("-m", "tests.kernels.compile_all", *flags)
    done = run_python(*words, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(caffe_dns.kernels.__file__).parent
    others = {"__init__", "blocks", "layout", "masked", "normalized", "patches", "postponed"}
    modules = {path.stem for path in folder.glob("*.py")} - others
    assert {name.rpartition(".")[2] for name in done.stdout.split()} == modules
