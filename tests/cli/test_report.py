"""`dns report`: one page of one run or of several."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from tests.cli.harness import complaint, run_well
from tests.oracle import GOLDEN
from tests.reports.page.reading import Page

Capture = pytest.CaptureFixture[str]
SNAPSHOT = ("snap_iter_40.caffemodel", "snap_iter_40.solverstate")
LOG = str(GOLDEN / "logs" / "train.log")
OURS = """\
I0101 00:00:00.000000 7 provenance.py:1] Versions: dns 1.0
I0101 00:00:00.000000 7 solver.py:1] Initializing solver from parameters:\x20
base_lr: 0.25
I0101 00:00:01.000000 7 solver.py:1] Iteration 0 (0 iter/s, 1s/10 iters), loss = 2
I0101 00:00:01.000000 7 solver.py:1] Surgery <b>: kept 8, pruned 0, sparsity 0, spliced back 0
I0101 00:00:01.000000 7 solver.py:1] Iteration 0, lr = 0.25
I0101 00:00:02.000000 7 solver.py:1] Iteration 10 (0 iter/s, 1s/10 iters), loss = 1
I0101 00:00:02.000000 7 solver.py:1] Surgery <b>: kept 2, pruned 6, sparsity 0.75, spliced back 1
I0101 00:00:02.000000 7 solver.py:1] Iteration 10, lr = 0.125
I0101 00:00:03.000000 7 solver.py:1] Iteration 20 (0 iter/s, 1s/10 iters), loss = 0.5
I0101 00:00:03.000000 7 solver.py:1] Surgery <b>: kept 2, pruned 6, sparsity 0.75, spliced back 0
I0101 00:00:03.000000 7 solver.py:1]     Test net output #0: accuracy = 0.75
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_run(capfd: Capture) -> None:
    Path("ours.log").write_text(OURS)
    assert run_well(["report", "ours.log"], capfd).out == "Wrote report.html\n"
    page = Page(Path("report.html").read_bytes())
    assert [e.text for e in page.all("h1")] == ["ours"]
    charts = page.charts()
    assert list(charts) == ["Scores", "Loss", "Parameters kept", "Learning rate"]
    (kept,) = charts["Parameters kept"]["traces"]
    assert (kept["name"], kept["x"], kept["y"]) == ("&lt;b&gt;", [0, 10, 20], [100, 25, 25])
    assert kept["customdata"] == [[8, 0], [2, 1], [2, 0]]
    for chart in charts.values():
        (line,) = chart["layout"]["shapes"]
        assert line["x0"] == line["x1"] == 10
        assert chart["layout"]["annotations"][0]["text"] == "end of pruning"
    cards = {c.all("dt")[0].text: [d.text for d in c.all("dd")] for c in page.all("dl")[0].inside}
    assert cards["masked parameters kept"] == ["2", "of 8 that have masks; the last at 10"]
    assert cards["iterations"] == ["20", "in 0:00:03 (h:mm:ss)"]
    assert cards["test accuracy"] == ["0.75"]
    assert "base_lr: 0.25\n" in [e.text for e in page.all("pre")]
    (figure,) = [f for f in page.all("figure") if f.all("figcaption")[0].text == "Parameters kept"]
    rows = [[cell.text for cell in row.inside] for row in figure.all("tr")]
    assert rows == [["iteration", "<b>"], ["0", "100"], ["10", "25"], ["20", "25"]]


def test_several_runs(capfd: Capture) -> None:
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "train.log").write_text(OURS)
    Path("b/other.log").write_text("nothing")
    os.utime("b/other.log", (2e9, 2e9))
    shutil.copy(LOG, "b/old.log")
    os.utime("b/old.log", (1e9, 1e9))
    run_well(["report", "a", "b", LOG, "--output", "all.html"], capfd)
    page = Page(Path("all.html").read_bytes())
    (table,) = [t for t in page.all("table") if t.all("caption")[0].text == "Runs side by side"]
    names = ["a", "b", "train"]
    assert [cell.text for cell in table.all("tr")[0].inside] == ["", *names]
    rows = {row.inside[0].text: [cell.text for cell in row.inside[1:]] for row in table.all("tr")}
    assert rows["masked parameters kept"] == ["2", "2", ""]
    losses = page.charts()["Loss"]["traces"]
    assert [(t["name"], t["colour"]) for t in losses[:2]] == [
        ("a: train loss", 0),
        ("b: train loss", 1),
    ]
    kept = page.charts()["Parameters kept"]["traces"]
    assert [(t["colour"], t["line"]["dash"]) for t in kept] == [(0, "solid"), (0, "dash")]


def test_where_the_solvers_of_several_runs_differ(capfd: Capture) -> None:
    same = 'net: "n.prototxt" lr_policy: "multistep" surgery_stage { interval: 3 compression: 4 }'
    Path("a.prototxt").write_text(f"{same} base_lr: 0.01 stepvalue: 5 stepvalue: 6")
    Path("b.prototxt").write_text(f"{same} base_lr: 0.003 surgery_stage {{ interval: 4 }}")
    run_well(["report", "a.prototxt", "b.prototxt"], capfd)
    page = Page(Path("report.html").read_bytes())
    (table,) = [t for t in page.all("table") if "solvers" in t.all("caption")[0].text]
    assert [[cell.text for cell in row.inside] for row in table.all("tr")] == [
        ["", "a.prototxt", "b.prototxt"],
        ["base_lr", "0.01", "0.003"],
        ["stepvalue", "5 6", ""],
        ["snapshot_prefix", '"a"', '"b"'],
        [
            "surgery_stage",
            "surgery_stage { compression: 4 interval: 3 }",
            "surgery_stage { compression: 4 interval: 3 } surgery_stage { interval: 4 }",
        ],
    ]
    run_well(["report", "a.prototxt", "a.prototxt"], capfd)
    assert b"Where the solvers differ" not in Path("report.html").read_bytes()


def test_the_net_and_its_weights(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_dns.reports.comparison.LEAST_TIME", 0)
    target = str(Path("page.html").absolute())
    monkeypatch.chdir(GOLDEN)
    run_well(["report", "runs/surgery_holmes", "--output", target], capfd)
    page = Page(Path(target).read_bytes())
    titles = [e.text for e in page.all("h2")]
    assert titles == ["Results", "Curves", "Net", "Weights", "Masks", "Settings"]
    scored = run_well(
        [
            *("summary", "--model", "runs/surgery_holmes/train_val.prototxt", "--json"),
            *("--weights", "runs/surgery_holmes/snap_iter_40.caffemodel"),
        ],
        capfd,
    )
    known = json.loads(scored.out)
    tables = {table.all("caption")[0].text: table for table in page.all("table")}
    costs = [
        [cell.text for cell in row.inside] for row in tables["Before and after pruning"].all("tr")
    ]
    assert costs[1][:3] == ["parameters", f"{known['parameters']:,}", f"{known['kept']:,}"]
    assert costs[2][:3] == ["MACs of one item", f"{known['macs']:,}", f"{known['macs_kept']:,}"]
    assert [row[0] for row in costs[4:]] == [f"ms, batch of {n}, one core" for n in (1, 64)]
    cards = {c.all("dt")[0].text: [d.text for d in c.all("dd")] for c in page.all("dl")[0].inside}
    assert cards["times fewer parameters"] == [
        f"{known['parameters'] / known['kept']:.1f}",
        f"{known['kept']:,} of {known['parameters']:,}",
    ]
    layers = tables["Layers, their outputs, parameters and MACs of one item"].all("tr")
    assert [cell.text for cell in layers[-1].inside][3:5] == costs[1][1:3]
    first = page.all("svg")[0].all("g")[0].attributes["aria-label"] or ""
    assert first.startswith("data, ")
    weighted = ["conv1", "conv2", "ip1", "ip2"]
    assert [title.split(" ")[0] for title in page.charts()][-4:] == weighted
    (pictures,) = page.all(class_="pictures")
    assert [e.text for e in pictures.all("figcaption")] == weighted


def test_data_are_asked_for_shapes_that_no_log_has(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("caffe_dns.reports.comparison.LEAST_TIME", 0)
    Path("data").symlink_to(GOLDEN / "data")
    folder = Path("runs/surgery_holmes")
    folder.mkdir(parents=True)
    for name in ("solver.prototxt", "train_val.prototxt", *SNAPSHOT):
        shutil.copy(GOLDEN / folder / name, folder)
    result = run_well(["report", str(folder / "solver.prototxt")], capfd)
    assert (result.out, result.messages) == ("Wrote report.html\n", [])
    page = Page(Path("report.html").read_bytes())
    assert "Before and after pruning" in [e.text for e in page.all("caption")]


def test_a_log_whose_net_is_not_here(capfd: Capture) -> None:
    Path("ours.log").write_text(OURS)
    run_well(["report", "ours.log"], capfd)
    page = Page(Path("report.html").read_bytes())
    assert "The net is not shown: the train net must be given" in "".join(
        e.text for e in page.all("p")
    )


def test_wrong_input(capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        return complaint(["report", *arguments], capfd)

    Path("empty").mkdir()
    assert "'RUN...'" in said()
    assert "a.png: a page's name ends in .html" in said(LOG, "--output", "a.png")
    assert "gone.log: cannot be read" in said("gone.log")
    assert "is not a training log" in said(str(GOLDEN / "README.md"))
    assert "empty: has no training log" in said("empty")
    assert "--shape '0'" in said(LOG, "--shape", "0")
    Path("a.caffemodel").write_text("nothing")
    assert "a.caffemodel" in said("a.caffemodel")
    Path("a.caffemodel").unlink()
    assert "no folder" in said(LOG, "--output", "gone/a.html")
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert said("gone.log") == "dns: pages need two packages: pip install plotly jinja2"
    assert [path.name for path in Path().iterdir()] == ["empty"]
