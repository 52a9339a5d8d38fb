"""`dns sensitivity`: what it prints and writes, and how it takes wrong input."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from caffe_dns import load_net
from tests.cli.harness import complaint, run_well
from tests.reports.page.reading import Page

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]
RUN = "runs/surgery_holmes"
COMMAND = ["sensitivity", "--model", f"{RUN}/train_val.prototxt", "-iterations", "2"]
WEIGHTS = ["--weights", "runs/sgd_inv/snap_iter_40.caffemodel"]


@pytest.mark.parametrize("kind", ["surgery_holmes", "surgery_guo"])
def test_files(kind: str, tmp_path: Path, capfd: Capture) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    pytest.importorskip("plotly", reason="the extra 'report' is not installed")
    model, prefix = f"runs/{kind}/train_val.prototxt", tmp_path / "lenet"
    weights = WEIGHTS if kind == "surgery_holmes" else ["--weights", f"runs/{kind}/init.caffemodel"]
    result = run_well(
        ["sensitivity", "-model", model, *weights, "-iterations", "2", "-output", str(prefix)],
        capfd,
    )
    names = [f"lenet.{ending}" for ending in ("csv", "png", "html", "prototxt")]
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    assert [f"Wrote {tmp_path / name}" for name in names] == result.out.splitlines()[-4:]
    with (tmp_path / "lenet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows if not row["value"]] == ["conv1", "conv2", "ip1", "ip2"]
    assert {row["setting"] for row in rows} == {
        "threshold" if kind == "surgery_holmes" else "c_rate"
    }
    assert (tmp_path / "lenet.png").read_bytes().startswith(b"\x89PNG")
    page = Page((tmp_path / "lenet.html").read_bytes())
    assert page.all("title")[0].text == f"Sensitivity of {kind}"
    (chart,) = page.charts().values()
    layers = {trace["name"]: trace for trace in chart["traces"]}
    assert list(layers) == ["conv1", "conv2", "ip1", "ip2"]
    ip1 = [row for row in rows if row["layer"] == "ip1"]
    assert [f"{score:.6g}" for score in layers["ip1"]["y"]] == [row["accuracy"] for row in ip1]
    drawn = [share / 100 for share in layers["ip1"]["customdata"]]
    assert drawn == pytest.approx([float(row["sparsity"]) for row in ip1], abs=1e-6)
    load_net(tmp_path / "lenet.prototxt", "TRAIN", weights[1]).close()


def test_the_definition_is_not_written_over(tmp_path: Path, capfd: Capture) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'plot' is not installed")
    pytest.importorskip("plotly", reason="the extra 'report' is not installed")
    model, prefix = tmp_path / "net.prototxt", str(tmp_path / "net")
    model.write_bytes(b"old")
    line = complaint(["sensitivity", "--model", str(model), *WEIGHTS, "--output", prefix], capfd)
    assert line == f"dns: {model}: is read here, and would be lost; give the output another name"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_some_layers_and_no_files(tmp_path: Path, capfd: Capture) -> None:
    limit = ["--loss-of-accuracy", "0.9"]
    result = run_well([*COMMAND, *WEIGHTS, "--layers", "ip2, conv1", *limit], capfd)
    table = [line.split() for line in result.out.splitlines()]
    assert [line[0] for line in table if line[1:2] == ["200"] or line[1:2] == ["400"]] == [
        "conv1",
        "ip2",
    ]
    assert "Proposed for at most 0.9 accuracy lost before training" in result.out
    assert "Wrote" not in result.out


def test_wrong_input(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*arguments: str) -> str:
        return complaint([*COMMAND, *arguments], capfd)

    assert "--model FILE" in complaint(["sensitivity", *WEIGHTS], capfd)
    assert "--weights FILE" in said()
    assert "-iterations must be at least 1" in said(*WEIGHTS, "-iterations", "0")
    assert "--loss-of-accuracy must be" in said(*WEIGHTS, "--loss-of-accuracy", "1")
    assert "train_val.prototxt: there is no layer 'ip3'" in said(*WEIGHTS, "--layers", "ip3")
    assert "layer 'pool1': type Pooling" in said(*WEIGHTS, "--layers", "pool1")
    assert "no folder" in said(*WEIGHTS, "--output", str(tmp_path / "gone" / "x"))
    (tmp_path / "x.html").mkdir()
    line = said(*WEIGHTS, "--output", str(tmp_path / "x"))
    assert line.endswith("x.html: cannot be written: it is a folder")
    (tmp_path / "x.html").rmdir()
    assert "gone.caffemodel" in said("--weights", "gone.caffemodel")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    line = said("--weights", "gone.caffemodel", "--output", str(tmp_path / "x"))
    assert line == "dns: pictures need a package: pip install matplotlib"
    assert list(tmp_path.iterdir()) == []
