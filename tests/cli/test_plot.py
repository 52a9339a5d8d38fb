"""`dns plot`: the pictures of training logs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from caffe_dns.reports.curves import Run
from caffe_dns.reports.curves_chart import draw
from tests.cli.harness import complaint, run_well
from tests.oracle import GOLDEN
from tests.reports.page.reading import Page

Capture = pytest.CaptureFixture[str]
LOG = str(GOLDEN / "logs" / "train.log")
SURGERY = str(GOLDEN / "runs" / "surgery_holmes" / "caffe.log")


@pytest.mark.parametrize(
    ("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("html", b"<!DOCTYPE html>")]
)
def test_forms(ending: str, start: bytes, tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / f"runs.{ending}"
    result = run_well(["plot", LOG, SURGERY, "-output", str(target)], capfd)
    assert result.out == f"Wrote {target}\n"
    assert target.read_bytes().startswith(start)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_page(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "run.html"
    run_well(["plot", LOG, "--output", str(target)], capfd)
    page = Page(target.read_bytes())
    assert page.all("title")[0].text == "train"
    assert list(page.charts()) == ["Scores", "Loss", "Learning rate"]


def test_what_is_drawn() -> None:
    plain = Run("a", {"test loss": {0: 2.0, 9: 1.0}, "train loss": {0: 2.0, 9: 0.01}})
    pruned = Run("b", {"train loss": {0: 1.0}}, {"test accuracy": {9: 0.95}}, {"_x$1$": {0: 0.5}})
    figure = draw([plain, pruned])
    losses, scores, sparsities = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "sparsity"]
    assert sparsities.get_xlabel() == "iteration"
    legends = [axes.get_legend() for axes in figure.axes]
    labels = [[text.get_text() for text in legend.get_texts()] for legend in legends if legend]
    assert labels == [
        ["a: train loss", "a: test loss", "b: train loss"],
        ["b: test accuracy"],
        ["b: _x$1$"],
    ]
    assert losses.get_yscale() == "log"
    assert np.asarray(losses.lines[1].get_ydata()).tolist() == [2.0, 1.0]
    assert losses.lines[0].get_color() == losses.lines[1].get_color()
    assert losses.lines[0].get_color() != losses.lines[2].get_color()
    assert scores.get_yscale() == "linear"
    figure.canvas.draw()
    for axes, legend in zip(figure.axes, legends, strict=True):
        assert legend is not None
        assert legend.get_window_extent().x0 > axes.get_window_extent().x1


def test_scores_near_one_are_stretched() -> None:
    (axes,) = draw([Run("a", scores={"test accuracy": {0: 0.1, 10: 0.98, 20: 0.992}})]).axes
    low, middle, high = (axes.transData.transform((0, score))[1] for score in (0.1, 0.9, 0.99))
    assert high - middle == pytest.approx(middle - low, rel=0.1)


def test_wrong_input(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        return complaint(["plot", *arguments], capfd)

    target = str(tmp_path / "a.png")
    assert "'LOG...'" in said("--output", target)
    assert "--output FILE.png" in said(LOG)
    assert "a.gif: the ending says" in said(LOG, "--output", "a.gif")
    assert "gone.log: cannot be read" in said("gone.log", "--output", target)
    assert "is not a training log" in said(LOG, __file__, "--output", target)
    assert "no folder" in said(LOG, "--output", str(tmp_path / "gone" / "a.png"))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = said("gone.log", "--output", target)
    assert line == "dns: pictures need a package: pip install matplotlib"
    assert list(tmp_path.iterdir()) == []
