"""The benchmark of growth: what its columns are, and that sizes fail alone."""

from __future__ import annotations

import sys

import pytest

from tests.processes import CONTEXT
from tools.benchmarks import scaling

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "get_context", lambda kind: CONTEXT)


def tables(arguments: str, monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["scaling.py", *arguments.split()])
    scaling.main()
    return capfd.readouterr().out.splitlines()


def test_growth(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    arguments = "--of layers records images --most 100 --iterations 1"
    lines = tables(arguments, monkeypatch, capfd)
    titles = ["first,", "s", "then,", "ms", "snapshot,", "s", "memory,", "MB"]
    assert lines[0].split() == ["layers", *titles]
    small, large = (line.split() for line in lines[1:3])
    assert small[0] == "10" and large[0] == "100" and len(small) == 5
    for figure, above, growth in zip(large[1::2], small[1:], large[2::2], strict=True):
        expected = float(figure) / float(above) / 10
        assert float(growth) == pytest.approx(expected, rel=0.02, abs=0.006)
    assert lines[3:5] == ["", f"      records{lines[0][13:]}"]
    assert [line.split()[0] for line in lines[7:9]] == ["1", "16"]


def test_ranks(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    lines = tables("--of ranks --most 2 --iterations 1", monkeypatch, capfd)
    assert [line.split()[0] for line in lines[:-1]] == ["ranks", "1", "2"]


def test_what_fails(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    nonsense = scaling.Quantity(lambda size, folder: "layer { type: 'Nothing' }", (1, 2))
    monkeypatch.setitem(scaling.QUANTITIES, "layers", nonsense)
    lines = tables("--of layers", monkeypatch, capfd)
    assert len(lines) == 3 and lines[1].startswith("            1  failed: ")
    assert "Nothing" in lines[1]
