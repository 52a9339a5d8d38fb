"""How many threads compute, and how they wait."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from caffe_dns.cli import threads
from tests.cli.harness import run_well
from tests.processes import run_python

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


def kernel_gives_short_turns() -> bool:
    """Whether this is Linux 6.12 or later, on a machine whose system calls are known."""
    version = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    return sys.platform == "linux" and version >= (6, 12) and platform.machine() in threads._CALLS


@pytest.mark.skipif(not kernel_gives_short_turns(), reason="the kernel gives no short turns")
def test_they_ask_for_short_turns() -> None:
    """Threads that are started later, too; what makes them give way to others stays as it is."""
    program = """
import ctypes, os, struct, threading
from caffe_dns.cli import threads
call = ctypes.CDLL(None).syscall
read, write = map(ctypes.c_long, threads._CALLS[os.uname().machine])
held = ctypes.create_string_buffer(48)
def attributes():
    call(read, 0, held, 48, 0)
    _, policy, _, nice, _, turn, *_ = struct.unpack(threads._ATTRIBUTES, held.raw)
    print(policy, nice, turn)
os.nice(3)
attributes()
threads.wake_soon()
attributes()
thread = threading.Thread(target=attributes)
thread.start()
thread.join()
nice = os.getpriority(os.PRIO_PROCESS, 0)
wanted = struct.pack(threads._ATTRIBUTES, 48, os.SCHED_OTHER, 0, nice, 0, 200_000, 0, 0)
call(write, 0, wanted, 0)
threads.wake_soon()
attributes()
os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
threads.wake_soon()
print(os.sched_getscheduler(0) == os.SCHED_BATCH)
"""
    done = run_python("-c", program)
    before, *after, shorter, other = done.stdout.splitlines()
    policy, nice, usual = before.split()
    assert other == "True"
    assert int(usual) > 500_000, done.stderr
    assert after == [f"{policy} {nice} 500000"] * 2
    assert shorter == f"{policy} {nice} 200000"


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
