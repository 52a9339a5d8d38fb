"""What a log says beside the curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.reports.run_log import read_run_log
from tests.oracle import GOLDEN


def test_caffes_log() -> None:
    found = read_run_log(str(GOLDEN / "logs" / "train.log"), "a")
    assert found.solver is not None and found.net is not None
    assert (found.solver.base_lr, found.solver.max_iter) == (pytest.approx(0.01), 40)
    assert found.solver_text.startswith("test_iter: 10\n")
    names = ["mnist", "conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "ip2", "loss"]
    assert [layer.name for layer in found.net.layer] == names
    assert found.facts["device"] == "CPU" and found.facts["began"] == "22 November, 11:24:26"
    assert found.folder == ""


def write(path: Path, *lines: str) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


LOSS = "I0101 00:00:30.250000 7 solver.py:1] Iteration 3, loss = 0.5"


def test_the_head_of_ours(tmp_path: Path) -> None:
    log = write(
        tmp_path / "log",
        "I1231 23:59:30.000000 7 provenance.py:1] Versions: dns 1.0, PyTorch 9",
        "I1231 23:59:30.000000 7 provenance.py:1] Command line: dns train --solver 'a b'",
        "I1231 23:59:30.000000 7 provenance.py:1] Folder: /a (b) (git 12ab with changes)",
        "I1231 23:59:30.000000 7 provenance.py:1] Random seed: 5 (from random_seed)",
        LOSS,
    )
    found = read_run_log(log, "a")
    assert found.facts == {
        "versions": "dns 1.0, PyTorch 9",
        "command line": "dns train --solver 'a b'",
        "folder": "/a (b) (git 12ab with changes)",
        "random seed": "5 (from random_seed)",
        "began": "31 December, 23:59:30",
        "took": "0:01:00",
    }
    assert found.folder == "/a (b)"
    assert found.solver is None and found.net is None and found.solver_text == ""


def test_definitions_that_cannot_be_read_are_shown_only(tmp_path: Path) -> None:
    head = "I0101 00:00:00.000000 7 solver.cpp:1] Initializing solver from parameters: "
    found = read_run_log(write(tmp_path / "log", head, "base_lr: 1", "gone_field: 2", LOSS), "a")
    assert found.solver is None and found.solver_text == "base_lr: 1\ngone_field: 2\n"


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match="is not a training log"):
        read_run_log(str(GOLDEN / "README.md"), "a")
    with pytest.raises(CaffeError, match="cannot be read"):
        read_run_log(str(tmp_path / "gone"), "a")
