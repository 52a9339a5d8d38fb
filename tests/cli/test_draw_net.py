"""`dns draw_net`: the files it writes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cli.harness import complaint, run_well
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]
NET = str(GOLDEN / "runs" / "sgd_inv" / "train_val.prototxt")
needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")


def test_text_needs_no_program(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    target = tmp_path / "net.dot"
    result = run_well(["draw_net", NET, str(target)], capfd)
    assert result.out == f"Drawing net to {target}\n"
    assert target.read_text().startswith('digraph "sgd_inv" {\nrankdir=LR\n')
    line = complaint(["draw_net", NET, str(tmp_path / "net.png")], capfd)
    assert "needs the program 'dot'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["net.dot"]


@pytest.mark.parametrize(
    ("phase", "wanted", "unwanted"),
    [
        ("TRAIN", ["Batch 32"], ["Batch 50", "Accuracy"]),
        ("TEST", ["Batch 50", "Accuracy"], ["Batch 32"]),
        ("ALL", ["Batch 50", "Batch 32", "Accuracy"], []),
    ],
)
def test_phase(
    phase: str, wanted: list[str], unwanted: list[str], tmp_path: Path, capfd: Capture
) -> None:
    target = tmp_path / "net.gv"
    run_well(["draw_net", "-phase", phase, NET, str(target)], capfd)
    text = target.read_text()
    assert all(word in text for word in wanted)
    assert not any(word in text for word in unwanted)


def test_flags(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "net.dot"
    run_well(["draw_net", NET, str(target), "--rankdir", "TB", "--display_lrm"], capfd)
    assert "rankdir=TB" in target.read_text()
    assert "lr mult: 1.0, 2.0" in target.read_text()


def test_old_definitions(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "net.dot"
    run_well(["draw_net", str(GOLDEN / "legacy" / "v1.prototxt"), str(target)], capfd)
    assert "(Convolution)" in target.read_text()


@needs_dot
@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_pictures(ending: str, start: bytes, tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / f"net.{ending}"
    run_well(["draw_net", NET, str(target)], capfd)
    assert target.read_bytes().startswith(start)


@needs_dot
def test_unknown_format(tmp_path: Path, capfd: Capture) -> None:
    assert '"xyz" not recognized' in complaint(["draw_net", NET, str(tmp_path / "a.xyz")], capfd)


def test_wrong_input(tmp_path: Path, capfd: Capture) -> None:
    def said(*arguments: str) -> str:
        return complaint(["draw_net", *arguments], capfd)

    target = str(tmp_path / "net.dot")
    assert "gone.prototxt" in said("gone.prototxt", target)
    assert "no ending" in said(NET, str(tmp_path / "net"))
    assert "-rankdir" in said("--rankdir=XY", NET, target)
    assert "-phase" in said("--phase=train", NET, target)
    assert "no folder" in said(NET, str(tmp_path / "gone" / "net.dot"))
    assert list(tmp_path.iterdir()) == []
