"""glog's flags, and its variables: what goes to stderr, and what into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from caffe_dns import log
from caffe_dns.cli.glog import heeded, take
from tests.cli.harness import complaint, run_well

Capture = pytest.CaptureFixture[str]
VARIABLES = (
    "GLOG_logtostderr",
    "GLOG_alsologtostderr",
    "GLOG_minloglevel",
    "GLOG_stderrthreshold",
    "GLOG_log_dir",
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_tool_of_which_only_errors_show(folder: Path, capfd: Capture) -> None:
    """tools/extract_features.cpp leaves glog's defaults alone, where the others log to stderr."""
    severities = []
    for environment in ({}, {"GLOG_logtostderr": "1"}, {"GLOG_stderrthreshold": "1"}):
        with heeded({}, environment, "extract_features"):
            for write in (log.info, log.warning, log.error):
                write("a line")
        lines = capfd.readouterr().err.splitlines()
        severities.append("".join(line[0] for line in lines))
    assert severities == ["E", "IWE", "WE"]


def said(words: Sequence[str], environment: dict[str, str], capture: Capture) -> str:
    """The severities that stderr gets."""
    others, taken = take(words)
    assert others == []
    capture.readouterr()
    with heeded(taken, environment):
        for write in (log.info, log.warning, log.error):
            write("a line")
    return "".join(line[0] for line in capture.readouterr().err.splitlines())


@pytest.mark.parametrize(
    ("words", "environment", "wanted"),
    [
        ([], {}, "IWE"),
        (["--minloglevel=1"], {}, "WE"),
        (["--minloglevel", "2"], {}, "E"),
        ([], {"GLOG_minloglevel": "1"}, "WE"),
        (["--minloglevel=0"], {"GLOG_minloglevel": "1"}, "IWE"),
        (["--noalsologtostderr"], {}, "E"),
        (["--alsologtostderr=0", "--stderrthreshold=1"], {}, "WE"),
        (["--alsologtostderr=f", "--logtostderr"], {}, "IWE"),
    ],
)
def test_stderr(words: list[str], environment: dict[str, str], wanted: str, capfd: Capture) -> None:
    assert said(words, environment, capfd) == wanted
    assert said([], {}, capfd) == "IWE"  # afterwards, as before


def test_files(folder: Path, capfd: Capture) -> None:
    assert said(["--log_dir=.", "--alsologtostderr=false"], {"USER": "me"}, capfd) == "E"
    lines = {name: (folder / f"dns.{name}").read_text() for name in ("INFO", "WARNING", "ERROR")}
    severities = {name: [line[0] for line in text.splitlines()] for name, text in lines.items()}
    assert severities == {"INFO": ["I", "W", "E"], "WARNING": ["W", "E"], "ERROR": ["E"]}
    assert not (folder / "dns.FATAL").exists()
    assert (folder / "dns.INFO").readlink().name.split(".")[3:5] == ["log", "INFO"]
    said(["--log_dir=.", "--minloglevel=1"], {}, capfd)
    assert len(list(folder.glob("dns.*.log.INFO.*"))) == 1  # nothing that would be in another
    said(["--log_dir=.", "--logtostderr"], {}, capfd)
    assert len(list(folder.glob("dns.*.log.*"))) <= 5


def test_a_link_that_cannot_be_made_costs_no_line(folder: Path, capfd: Capture) -> None:
    """As where a file system has none; here a folder is in the way."""
    (folder / "dns.INFO").mkdir()
    lost = log.lost_lines
    said(["--log_dir=.", "--noalsologtostderr"], {}, capfd)
    (file,) = folder.glob("dns.*.log.INFO.*")
    assert [line[0] for line in file.read_text().splitlines()] == ["I", "W", "E"]
    assert log.lost_lines == lost


def test_commands(folder: Path, capfd: Capture) -> None:
    (folder / "logs").mkdir()
    (folder / "net.prototxt").write_text(
        """layer { name: 'data' type: 'DummyData' top: 'x'
             dummy_data_param { shape { dim: 2 dim: 3 } } }
           layer { name: 'loss' type: 'Reduction' bottom: 'x' top: 'loss' loss_weight: 1 }"""
    )
    words = ["-log_dir", "logs", "time", "-model=net.prototxt", "-iterations", "1"]
    printed = run_well(words, capfd).err
    assert "Average Forward pass" in printed
    assert (folder / "logs" / "dns.INFO").read_text() == printed


def test_wrong_values(folder: Path, capfd: Capture) -> None:
    for words, wanted in (
        (["-minloglevel=x"], "--minloglevel: 'x' is no severity: 0 INFO, 1 WARNING, 2 ERROR"),
        (["-minloglevel=²"], "--minloglevel: '²' is no severity"),
        (["-minloglevel", "1" * 5000], "is no severity: 0 INFO, 1 WARNING, 2 ERROR"),
        (["-nominloglevel=1"], "No such option: --nominloglevel ("),
        (["-iteration=1"], "No such option: --iteration (did you mean '--iterations'?)"),
        (["-logtostderr=x"], "--logtostderr: 'x' is neither true nor false"),
        (["-log_dir=nowhere"], "nowhere: --log_dir: there is no such folder to write to"),
        (["-log_dir"], "--log_dir needs a value"),
    ):
        assert wanted in complaint(["test", *words], capfd)
