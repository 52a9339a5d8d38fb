"""Every kernel compiles for a GPU, whether there is one or not."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import caffe_dns.kernels


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
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-m", "tests.kernels.compile_all", *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = Path(caffe_dns.kernels.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__", "blocks", "layout"}
    assert {name.rpartition(".")[2] for name in done.stdout.split()} == modules
