"""The models that the authors of Dynamic Network Surgery published, scored on MNIST's test set."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.data.datum import parse_datum
from caffe_dns.data.db import open_database
from caffe_dns.export.deploy import deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import shrink
from caffe_dns.proto.upgrade import read_net
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


@pytest.mark.parametrize("name", [name for name in MODELS if name.endswith("sparse")])
def test_shrunk_models_predict_the_same_of_every_test_image(name: str) -> None:
    definition = ROOT / "models" / MODELS[name][0] / "deploy.prototxt"
    weights = str(OFFICIAL / f"{name}.caffemodel")
    model = UnmaskedModel.load(deploy(read_net(definition).message), weights)
    shrunk = shrink(model).model
    assert shrunk.total < model.total
    masked = load_net(definition, weights=weights)
    assert any(step.layer.mask_indices for step in masked.steps)
    with open_database(str(TEST_SET)) as database:
        images = [parse_datum(bytes(record)).data for _, record in database.records()]
    pixels = np.frombuffer(b"".join(images), np.uint8).reshape(-1, 1, 28, 28)
    inputs = torch.from_numpy(pixels / np.float32(256))
    predictions = []
    for net in (masked, shrunk.to_net()):
        net.reshape({"data": tuple(inputs.shape)})
        with torch.no_grad():
            predictions.append(net({"data": inputs})["prob"].argmax(1))
    assert len(predictions[0]) == 10000
    assert torch.equal(*predictions)


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
