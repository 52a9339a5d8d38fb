"""The models that the authors of Dynamic Network Surgery published, scored on MNIST's test set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.harness import run_well
from tests.oracle import OFFICIAL

ROOT = Path(__file__).parents[1]
TEST_SET = ROOT / "data" / "mnist" / "mnist_test_lmdb"

pytestmark = [
    pytest.mark.skipif(not OFFICIAL.exists(), reason="the official models are not here"),
    pytest.mark.skipif(not TEST_SET.exists(), reason="needs MNIST: run dns get_mnist"),
]

#: Model: our definition, error in per cent, parameters kept in all and by layer.
MODELS = {
    "caffe_lenet300100_original": ("lenet_300_100", 2.28, None, {}),
    "caffe_lenet300100_sparse": (
        "lenet_300_100",
        1.99,
        4988,
        {"ip1": 4381, "ip2": 558, "ip3": 49},
    ),
    "caffe_lenet5_original": ("lenet", 0.91, None, {}),
    "caffe_lenet5_sparse": (
        "lenet",
        0.91,
        3993,
        {"conv1": 74, "conv2": 779, "ip1": 2923, "ip2": 217},
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_scores_and_what_is_kept(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    folder, error, kept, layers = MODELS[name]
    definition = f"models/{folder}/train_val.prototxt"
    weights = str(OFFICIAL / f"{name}.caffemodel")
    flags = ["--model", definition, "--weights", weights, "-iterations", "100"]
    messages = run_well(["test", *flags], capfd).messages
    (accuracy,) = [m for m in messages if m.startswith("accuracy = ")]
    assert round(100 * (1 - float(accuracy.split()[-1])), 2) == error
    counts = {
        match[1]: int(match[2])
        for message in messages
        if (match := re.match(r"Kept (.*): (\d+) of \d+ parameters", message))
    }
    assert counts == ({} if kept is None else {**layers, "in all": kept})
