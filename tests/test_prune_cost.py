"""The benchmark of `caffe_dns.prune`: every way trains with pruning and without."""

from __future__ import annotations

import sys

import pytest
import torch

from tools.benchmarks import prune_cost


@pytest.mark.parametrize(
    "way",
    [
        "eager",
        pytest.param(
            "graph",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_a_way(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = f"--nets lenet --ways {way} --batch 2 --copies 2 --rounds 2"
    monkeypatch.setattr(sys, "argv", ["prune_cost.py", *arguments.split()])
    monkeypatch.setattr(prune_cost, "INTERVAL", 2)
    prune_cost.main()
    _device, titles, row = capsys.readouterr().out.splitlines()
    assert titles.split() == ["net", "way", "without", "with", "more"]
    net, printed, without, with_it, more = row.split()
    assert (net, printed) == ("lenet", way)
    ratio = float(with_it) / float(without) - 1
    # Milliseconds are printed with three digits behind the point, per cent with two.
    assert float(more.rstrip("%")) / 100 == pytest.approx(
        ratio, abs=0.0001 + 0.002 / float(without)
    )
