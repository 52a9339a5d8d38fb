"""`dns train --report`: the page while a run goes on, and after it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from caffe_dns import log
from caffe_dns.cli import live_report
from caffe_dns.solver.solver import Solver
from tests.cli.harness import Result, complaint, run_well
from tests.reports.page.reading import Page
from tests.solver.test_observers import write_solver

Capture = pytest.CaptureFixture[str]
RUN = "surgery_holmes"


@pytest.fixture(autouse=True)
def quick(in_golden_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_dns.reports.comparison.LEAST_TIME", 0)


def train(folder: Path, capture: Capture, *flags: str, **settings: object) -> Result:
    short = {"max_iter": 8, "test_interval": 4, "display": 2, "snapshot": 8, "test_iter": 1}
    folder.mkdir(exist_ok=True)
    solver = write_solver(folder, RUN, **{**short, **settings})
    weights = ("--weights", f"runs/{RUN}/init.caffemodel")
    return run_well(["train", "--solver", solver, *weights, *flags], capture)


def test_the_page_is_that_of_the_log(tmp_path: Path, capfd: Capture) -> None:
    live = tmp_path / "snap.html"
    result = train(tmp_path, capfd, "--report", str(live))
    (tmp_path / "snap.log").write_text(result.err)
    later = tmp_path / "later.html"
    run_well(["report", str(tmp_path / "snap.log"), "--output", str(later)], capfd)
    one, other = Page(live.read_bytes()), Page(later.read_bytes())
    assert one.charts() == other.charts()
    tables = [[table.words() for table in page.all("table")] for page in (one, other)]
    for found in tables:
        (layers,) = (text for text in found if "Layers, their outputs" in text)
        found[found.index(layers)] = layers[layers.index("total") :]  # the data are inputs later
        (costs,) = (text for text in found if "Before and after pruning" in text)
        found[found.index(costs)] = costs[: costs.index("ms, ")]  # times differ
    assert tables[0] == tables[1] and len(tables[0]) > 10
    assert str(live) in result.out
    assert log.listeners == []


def test_the_training_is_not_touched(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_report, "_PAUSE", 0.0)
    monkeypatch.setattr(live_report, "_SHARE", 0)
    target = "--target-sparsity=0.5"
    train(tmp_path / "plain", capfd, target)
    train(tmp_path / "shown", capfd, target, "--report", str(tmp_path / "shown.html"))
    name = "snap_iter_8.caffemodel"
    assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "shown" / name).read_bytes()


def test_it_is_written_seldom(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    written: list[float] = []

    def write(path: str, data: bytes) -> None:
        nonlocal now
        written.append(now)
        now += 0.5  # what a writing takes: then none for 50 seconds

    def solved(trainer: Solver) -> None:
        nonlocal now
        for _ in range(12):
            for observer in trainer.observers:
                observer.tested(0, 0, {})
            now += 10

    monkeypatch.setattr(live_report.time, "monotonic", lambda: now)
    monkeypatch.setattr(live_report, "write_atomically", write)
    monkeypatch.setattr(Solver, "solve", solved)
    train(tmp_path, capfd, "--report", str(tmp_path / "a.html"), "--no-surgery")
    assert [time - 1000 for time in written[:-1]] == [0, 50.5, 101]
    assert written[-1] == now - 0.5  # and at the end


def test_a_run_that_fails_leaves_its_page(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Solver, "solve", broken)
    page = tmp_path / "a.html"
    solver = write_solver(tmp_path, RUN)
    line = complaint(["train", "--solver", solver, "--report", str(page)], capfd)
    assert "out of memory" in line
    assert "Net" in [e.text for e in Page(page.read_bytes()).all("h2")]
    assert log.listeners == []


def test_wrong_input(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(report: str) -> str:
        solver = f"runs/{RUN}/solver.prototxt"
        return complaint(["train", "--solver", solver, "--report", report], capfd)

    assert "a.png: a page's name ends in .html" in said("a.png")
    assert "no folder" in said(f"{tmp_path}/gone/a.html")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert said("a.html") == "dns: pages need two packages: pip install plotly jinja2"
    assert log.listeners == []
