"""`dns detect`: windows of images in, scores out."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import caffe_dns.pycaffe as caffe
from tests.cli.harness import complaint, run_well
from tests.cli.test_classify import FLAGS, Capture, folder  # noqa: F401 (a fixture)
from tests.oracle import assert_close

WINDOWS = """filename,xmin,ymin,xmax,ymax
images/a.png,1,2,6,6
images/b.png,0,0,5,4
images/a.png,2,1,7,5
"""


def expected() -> list[tuple[str, list[int], np.ndarray]]:
    """What pycaffe's Detector makes of the same, images in the order in which they come first."""
    detector = caffe.Detector(
        "net.prototxt",
        "net.caffemodel",
        mean=np.array([1.0, 2.0, 3.0]),
        raw_scale=255,
        channel_swap=[2, 1, 0],
        context_pad=1,
    )
    windows = {
        "images/a.png": np.array([[2, 1, 6, 6], [1, 2, 5, 7]]),
        "images/b.png": np.array([[0, 0, 4, 5]]),
    }
    return [
        (found["filename"], list(found["window"]), found["prediction"])
        for found in detector.detect_windows(windows.items())
    ]


def test_listed_windows(capfd: Capture) -> None:
    Path("in.csv").write_text(WINDOWS)
    # A mean of every pixel is that of each channel here.
    np.save("mean.npy", np.array([1.0, 2.0, 3.0]).reshape(3, 1, 1) * np.ones((3, 4, 5)))
    flags = ["-crop_mode", "list", "--context_pad=1", "--mean_file", "mean.npy"]
    result = run_well(["detect", "in.csv", "out.csv", *FLAGS, *flags], capfd)
    lines = result.out.splitlines()
    assert lines[:2] == ["CPU mode", "Loading input..."]
    assert lines[2].startswith("Processed 3 windows in ")
    assert lines[3].startswith("Saved to out.csv in ")
    head, *rows = csv.reader(Path("out.csv").read_text().splitlines())
    assert head == ["filename", "ymin", "xmin", "ymax", "xmax", *(f"class{i}" for i in range(6))]
    for row, (name, window, scores) in zip(rows, expected(), strict=True):
        assert (row[0], [int(edge) for edge in row[1:5]]) == (name, window)
        assert_close(np.array(row[5:], np.float32), scores, "scores")


def test_selective_search(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    Path("in.txt").write_text("images/a.png\n\nimages/b.png\n")
    arguments = ["detect", "in.txt", "out.csv", *FLAGS, "--context_pad", "0"]
    assert "needs the package selective_search_ijcv_with_python" in complaint(arguments, capfd)
    package = SimpleNamespace(get_windows=lambda files, cmd: [[[0, 0, 4, 5]] for _ in files])
    monkeypatch.setitem(sys.modules, "selective_search_ijcv_with_python", package)
    run_well(arguments, capfd)
    names = [line.split(",")[0] for line in Path("out.csv").read_text().splitlines()[1:]]
    assert names == [str(Path(f"images/{name}.png").absolute()) for name in "ab"]


def test_pandas_writes_hdf5(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    Path("in.csv").write_text(WINDOWS)
    arguments = ["detect", "in.csv", "out.h5", *FLAGS, "-crop_mode=list", "--context_pad=1"]
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert "needs the packages pandas and tables" in complaint(arguments, capfd)

    class Frame:
        def __init__(self, rows: list[dict[str, object]]) -> None:
            self.rows = rows

        def set_index(self, name: str) -> Frame:
            assert name == "filename"
            return self

        def to_hdf(self, path: str, key: str, mode: str) -> None:
            Path(path).write_text(f"{key} {mode} {len(self.rows)} {sorted(self.rows[0])}")

    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    monkeypatch.setitem(sys.modules, "tables", SimpleNamespace())
    run_well(arguments, capfd)
    columns = ["filename", "prediction", "xmax", "xmin", "ymax", "ymin"]
    assert Path("out.h5").read_text() == f"df w 3 {columns}"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("in.csv", "filename,xmin\n", "in.csv: has no column 'ymin' in its first line"),
        ("in.csv", WINDOWS.replace("5,4", "5,x"), "in.csv:3: a window needs four numbers"),
        ("in.csv", WINDOWS.replace(",5,4", ",5"), "in.csv:3: a window needs four numbers"),
        ("in.csv", "ymin,xmin,ymax,xmax,filename\n1,2,3,4\n", "in.csv:2: names no image"),
        ("in.csv", WINDOWS.replace("5,4", "5,inf"), "in.csv:3: a window needs four numbers"),
        ("in.csv", WINDOWS.replace("5,4", "5,1e30"), "in.csv:3: a window needs four numbers"),
        ("in.csv", WINDOWS.replace("5,4", "x" * 200_000), "in.csv:3: is not CSV: field larger"),
        ("in.csv", WINDOWS.replace("5,4", "5,0"), "lies outside of an image of 8 by 9 pixels"),
        ("in.csv", WINDOWS.replace("b.png", "z.png"), "images/z.png: cannot be read"),
        ("in.txt", "images/a.png", "in.txt: the name must end in .csv"),
    ],
)
def test_wrong_input(name: str, text: str, message: str, capfd: Capture) -> None:
    Path(name).write_text(text)
    arguments = ["detect", name, "out.csv", *FLAGS, "-crop_mode", "list", "-context_pad", "0"]
    assert message in complaint(arguments, capfd)
    assert not Path("out.csv").exists()
