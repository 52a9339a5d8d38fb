"""tools/mnist_results on a thousand images: it runs the recipes and tells what came of them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from caffe_dns import log
from caffe_dns.data.db import open_database
from tests import programs
from tests.oracle import GOLDEN
from tests.processes import run_forked

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The tool in a folder with recipes of three iterations."""
    module = programs.load("mnist_results", monkeypatch)
    monkeypatch.setattr(log, "_quiet", False)  # undone at the end
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data" / "mnist"
    data.mkdir(parents=True)
    shutil.copytree(f"{GOLDEN}/data/mnist1k_train_lmdb", data / "mnist_train_lmdb")
    shutil.copytree(f"{GOLDEN}/data/mnist500_test_lmdb", data / "mnist_test_lmdb")
    folder = tmp_path / "models" / "lenet_300_100"
    folder.mkdir(parents=True)
    for path in (ROOT / "models" / "lenet_300_100").glob("*.prototxt"):
        text = re.sub(r"max_iter: \d+", "max_iter: 3", path.read_text())
        text = re.sub(r"end_iter: \d+", "end_iter: 1", text)
        text = text.replace("guo_crops", "guo")
        (folder / path.name).write_text(re.sub("compression: 56", "compression: 8", text))
    monkeypatch.setattr(module, "RECIPES", {"lenet_300_100": ("solver", "guo_56x_solver")})
    monkeypatch.setattr(module, "SCORED_BATCHES", {False: 5, True: 1})
    monkeypatch.setattr(module, "FIT_RECORDS", 900)
    monkeypatch.setattr(module.subprocess, "run", run_forked)
    return module


def test_results(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["mnist_results", "--seeds", "4", "--holdout", "--keep", "kept"]
    )
    assert tool.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "lenet_300_100, seeds 4"
    dense, pruned, scratch = lines[-3:]
    assert re.fullmatch(r"\| dense \| \d+\.\d\d % \| all \| 1 \|  \|  \|  \|", dense)
    kept = (
        r"\| \d+\.\d\d % \| 33,326 \| 8\.0 \| ip1 [\d,]+, ip2 [\d,]+, ip3 \d+ \| ip1 -?\d\.\d\d, "
    )
    assert re.match(rf"\| guo_56x {kept}", pruned)
    assert re.match(rf"\| guo_56x from scratch {kept}", scratch)
    assert sorted(path.name for path in Path("kept").iterdir()) == [
        "lenet_300_100_guo_56x_4_pruned.caffemodel",
        "lenet_300_100_guo_56x_from_scratch_4_pruned.caffemodel",
    ]
    for name, records in (("mnist_fit_lmdb", 900), ("mnist_holdout_lmdb", 100)):
        with open_database(f"data/mnist/{name}", announce=False) as database:
            assert database.entries() == records


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "name"), [(["--bits", "3"], ", 3 bits"), (["--share", "share"], " by share")]
)
def test_compact_files(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    name: str,
) -> None:
    flags += ["--seeds", "4", "--compression", "60", "--keep", "kept"]
    monkeypatch.setattr(sys, "argv", ["mnist_results", *flags])
    assert tool.main() == 0
    pruned, shared = capsys.readouterr().out.splitlines()[-2:]
    assert re.match(r"\| guo_56x 60x \| \d+\.\d\d % \| 4,443 \| 60\.0 \|", pruned)
    file = Path(f"kept/lenet_300_100_guo_56x_60x{name.replace(',', '').replace(' ', '_')}_4.dnsz")
    size = file.stat().st_size
    assert file.read_bytes()[4] == 3
    assert Path("kept/lenet_300_100_guo_56x_60x_4_pruned.caffemodel").exists()
    assert shared.startswith(f"| guo_56x 60x{name} | ")
    assert shared.endswith(f" | {size:,} ({size:,} to {size:,}) |")
    assert 3000 < size < 5600


def test_several_seeds(tool: ModuleType) -> None:
    results = [
        tool.Result("guo", seed, error, {"ip1": 1000 * seed, "ip2": 7}, 266610, {"ip1": 2.0 * seed})
        for seed, error in ((1, 2.5), (2, 1.5))
    ]
    assert tool.table(results).splitlines()[-1] == (
        "| guo | 2.00 % (1.50 to 2.50) | 1,507 | 176.9 | ip1 1,500, ip2 7 | ip1 3.00 |  |"
    )


def test_a_recipe_that_fails(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("models/lenet_300_100/train_val.prototxt").write_text("layer { name: 'x' }")
    monkeypatch.setattr(sys, "argv", ["mnist_results", "--seeds", "1"])
    assert tool.main() == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("mnist_results: dns: ")
