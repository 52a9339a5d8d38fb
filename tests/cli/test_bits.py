"""`--bits auto`: bits found by scoring, in training and in export."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from caffe_dns import interrupt
from caffe_dns.cli import bits as found_bits
from caffe_dns.net import Net
from tests.cli.harness import complaint, run_well
from tests.cli.test_pruned import PRUNING, arrays, write_solver
from tests.solver.harness import small_net

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def train(tmp_path: Path, capfd: Capture) -> list[str]:
    """The command that trains a net of which a fifth is left, in `snap_pruned.caffemodel`."""
    command = write_solver(tmp_path, small_net())
    run_well([*command, *PRUNING], capfd)
    (tmp_path / "snap_pruned.caffemodel").rename(tmp_path / "plain.caffemodel")
    return command


def values(file: Path, layer: str) -> int:
    """How many values the entries of a layer have, 0 aside."""
    weight, bias = arrays(file)[layer][:2]
    entries = np.concatenate([weight.ravel(), bias.ravel()])
    return len(np.unique(entries[entries != 0]))


def test_training(train: list[str], tmp_path: Path, capfd: Capture) -> None:
    weights = ["--weights", f"{tmp_path}/plain.caffemodel", "--masks-from-zeros"]
    flags = [*weights, "--bits", "auto", "--loss-of-accuracy", "0.2"]
    messages = run_well([*train, *flags], capfd).messages
    (said,) = [message for message in messages if message.startswith("Bits: ")]
    found = dict(re.findall(r"(ip\d) (\d)", said))
    assert list(found) == ["ip1", "ip2"]
    trained = tmp_path / "snap_pruned.caffemodel"
    for layer, bits in found.items():
        assert 1 < values(trained, layer) <= 2 ** int(bits)
    written = f"{tmp_path}/snap_bits_solver.prototxt"
    assert f"Wrote {written}, which trains like this without --bits auto" in messages
    first = trained.read_bytes()
    trained.unlink()
    run_well(["train", "--solver", written, *weights], capfd)
    assert trained.read_bytes() == first


def test_export(train: list[str], tmp_path: Path, capfd: Capture) -> None:
    net = ["--model", f"{tmp_path}/net.prototxt", "--weights", f"{tmp_path}/plain.caffemodel"]
    flags = ["--shrink", "--bits", "auto", "--iterations", "2", "--json"]

    def export(loss: str) -> tuple[dict[str, int], int]:
        file = ["--output", f"{tmp_path}/small.caffemodel", "--loss-of-accuracy", loss]
        found = json.loads(run_well(["export", *net, *flags, *file], capfd).out)["bits"]
        for layer, bits in found.items():
            assert 1 < values(tmp_path / "small.caffemodel", layer) <= 2**bits
        return found, sum(found.values())

    strict, lax = export("0"), export("0.5")
    assert list(strict[0]) == ["ip1", "ip2"]
    assert lax[1] < strict[1]


def test_a_compact_file_is_scored_by_a_definition_with_data(
    train: list[str], tmp_path: Path, capfd: Capture
) -> None:
    model = ["--model", f"{tmp_path}/net.prototxt"]
    small, smaller = (f"{tmp_path}/{name}.dnsz" for name in ("small", "smaller"))
    plain = ["--weights", f"{tmp_path}/plain.caffemodel"]
    run_well(["export", *model, *plain, "--shrink", "--output", small], capfd)
    bits = ["--weights", small, "--output", smaller, "--bits", "auto"]
    assert "Bits: ip1 " in run_well(["export", *model, *bits], capfd).out
    assert Path(smaller).stat().st_size < Path(small).stat().st_size / 2
    assert "--model FILE" in complaint(["export", *bits], capfd)


def test_a_signal_leaves_nothing_of_what_is_scored(
    train: list[str], tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a, b"  # no list of two files
    folder.mkdir()
    load = found_bits.load_net

    def load_and_clean(*arguments: Any, **settings: Any) -> Net:
        net = load(*arguments, **settings)
        assert len(os.listdir(folder)) == 1
        for clean in interrupt.at_end:
            clean()
        assert not os.listdir(folder)
        return net

    monkeypatch.setattr(found_bits, "load_net", load_and_clean)
    net = ["--model", f"{tmp_path}/net.prototxt", "--weights", f"{tmp_path}/plain.caffemodel"]
    flags = ["--bits", "auto", "--loss-of-accuracy", "0.5", "--output", f"{folder}/small.dnsz"]
    run_well(["export", *net, *flags], capfd)
    assert os.listdir(folder) == ["small.dnsz"]


def test_wrong_flags(train: list[str], tmp_path: Path, capfd: Capture) -> None:
    def said(*flags: str) -> str:
        return complaint([*train, *flags], capfd)

    assert "'9' is neither auto nor from 1 to 8" in said("--bits", "9")
    assert "'few' is neither auto nor from 1 to 8" in said("--bits", "few")
    assert "needs --bits auto" in said("--bits", "3", "--loss-of-accuracy", "0.1")
    assert "below 1, not 1" in said("--bits", "auto", "--loss-of-accuracy", "1")
    text = (tmp_path / "solver.prototxt").read_text()
    without = re.sub(r"test_(iter|interval): \d+", "", text)
    for wrong in (without, re.sub(r"test_iter: \d+", "test_iter: 0", text)):
        (tmp_path / "solver.prototxt").write_text(wrong)
        assert "--bits auto needs a test net to score" in said("--bits", "auto")
    plain = ["--model", f"{tmp_path}/net.prototxt", "--weights", f"{tmp_path}/plain.caffemodel"]
    no_batch = ["--output", f"{tmp_path}/x.dnsz", "--bits", "auto", "--iterations", "0"]
    assert "-iterations must be at least 1" in complaint(["export", *plain, *no_batch], capfd)
