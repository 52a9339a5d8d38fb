"""How many threads compute, and how they wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from caffe_dns.cli import threads
from tests.cli.harness import run_well

Capture = pytest.CaptureFixture[str]
NET = """
layer { name: "data" type: "DummyData" top: "data" dummy_data_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 2 } }
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    usual = torch.get_num_threads()
    yield
    torch.set_num_threads(usual)


@pytest.mark.parametrize("count", [1, 3])
def test_so_many_threads(count: int, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "net.prototxt").write_text(NET)
    model = ["--model", str(tmp_path / "net.prototxt"), "--iterations", "1"]
    run_well(["time", *model, "--threads", str(count)], capfd)
    assert torch.get_num_threads() == count


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, " threads (GOMP_SPINCOUNT=3000)"),
        ({"GOMP_SPINCOUNT": "7"}, " threads (GOMP_SPINCOUNT=7)"),
        ({"OMP_WAIT_POLICY": "active"}, " threads (OMP_WAIT_POLICY=active)"),
    ],
)
def test_how_they_wait(given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", given)
    threads.wait_briefly()
    assert threads.described() == f"{torch.get_num_threads()}{said}"


def test_that_is_said_before_pytorch_is_there() -> None:
    program = """
import os, sys
from caffe_dns import __main__
from caffe_dns.cli import main
main.main = lambda: print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
__main__.main()
"""
    environment = {name: value for name, value in os.environ.items() if "SPIN" not in name}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.stdout == "3000 False\n", done.stderr
