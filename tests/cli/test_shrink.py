"""`--shrink` of `dns export`, `dns summary` and `dns test` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.weights import save_weights
from tests.cli.harness import complaint, run_well
from tests.oracle import OFFICIAL

#: Masked layers of both kinds, between data and a loss.
NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
  dummy_data_param { shape { dim: 4 dim: 1 dim: 8 dim: 8 } shape { dim: 4 }
    data_filler { type: "uniform" min: -1 max: 1 } data_filler { type: "constant" value: 1 } } }
layer { name: "conv" type: "CConvolution" bottom: "data" top: "conv"
  param { lr_mult: 1 } param { lr_mult: 2 } param { lr_mult: 0 } param { lr_mult: 0 }
  convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }
"""
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def model(tmp_path: Path) -> list[str]:
    """Flags for a net of which two filters have no weights and one no reader."""
    definition, weights = tmp_path / "net.prototxt", tmp_path / "net.caffemodel"
    definition.write_text(NET)
    net = load_net(definition)
    with torch.no_grad():
        net.params["conv"][1].uniform_(0.1, 0.5)
        net.params["conv"][2][[0, 3]] = 0
        net.params["scale"][0].uniform_(0.5, 2)
        net.params["ip"][2].view(3, 6, -1)[:, 5] = 0
    save_weights(net, weights)
    return ["--model", str(definition), "--weights", str(weights)]


def test_export_writes_the_definition_beside_it(
    model: list[str], tmp_path: Path, capfd: Capture
) -> None:
    out = tmp_path / "small.caffemodel"
    result = run_well(["export", *model, "--shrink", "--output", str(out), "--batch", "4"], capfd)
    assert "conv: 3 of 6 outputs" in result.out
    assert result.out.splitlines()[-1] == (f"Wrote {tmp_path / 'small.prototxt'}, its definition")
    stored = next(line for line in result.out.splitlines() if "numbers stored" in line).split()
    assert stored[2:4] == [f"{6 * 11 + 3 * (6 * 36 + 1)}", f"{3 * 11 + 3 * (3 * 36 + 1)}"]
    small = load_net(tmp_path / "small.prototxt", weights=out, surgery=False)
    assert small.params["conv"][0].shape == (3, 1, 3, 3)
    given = load_net(model[1], weights=model[3])
    blobs = given()
    with torch.no_grad():
        prob = small({"data": blobs["data"]})["prob"]
    np.testing.assert_allclose(prob, blobs["ip"].detach().softmax(1), rtol=1e-5)


def test_what_is_given_is_not_written_over(
    model: list[str], tmp_path: Path, capfd: Capture
) -> None:
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    _, definition, _, weights = model
    # The second would bring its definition with it, of the same name.
    for words, lost in (
        (["export", *model, "--output", weights], weights),
        (["export", *model, "--shrink", "--output", f"{tmp_path}/net.safetensors"], definition),
        (["deploy", "--model", definition, "--output", definition], definition),
    ):
        line = complaint(words, capfd)
        assert line == f"dns: {lost}: is read here, and would be lost; give the output another name"
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("ending", ["onnx", "safetensors", "dnsz"])
def test_other_formats(ending: str, model: list[str], tmp_path: Path, capfd: Capture) -> None:
    if ending != "dnsz":
        pytest.importorskip(ending, reason=f"needs the package {ending}")
    out = tmp_path / f"small.{ending}"
    run_well(["export", *model, "--shrink", "--output", str(out)], capfd)
    assert (tmp_path / "small.prototxt").exists() == (ending == "safetensors")
    if ending == "onnx":
        from onnx import load

        shapes = [tuple(array.dims) for array in load(out).graph.initializer]
        assert {(3, 1, 3, 3), (3, 3 * 36)} <= set(shapes)
    if ending == "safetensors":
        from safetensors.numpy import load_file

        arrays = load_file(out)
        assert arrays["conv.weight"].shape == (3, 1, 3, 3)
        assert arrays["ip.weight"].shape == (3, 3 * 36)
    if ending == "dnsz":
        again = tmp_path / "again.caffemodel"
        run_well(["export", "--weights", str(out), "--shrink", "--output", str(again)], capfd)
        assert "num_output: 3" in (tmp_path / "again.prototxt").read_text()


def test_scores_are_those_of_the_given_net(model: list[str], capfd: Capture) -> None:
    def scores(*flags: str) -> list[list[str]]:
        messages = run_well(["test", *model, "--iterations", "3", *flags], capfd).messages
        return [text.split() for text in messages if text.startswith(("accuracy =", "loss ="))]

    given = scores()
    for flags in (["--shrink"], ["--fold"], ["--fold", "--shrink"]):
        reduced = scores(*flags)
        assert given[0] == reduced[0]
        assert float(given[1][2]) == pytest.approx(float(reduced[1][2]), rel=1e-5)
    flags = ["--iterations", "1", "--shrink", "--fold"]
    messages = run_well(["test", *model, *flags], capfd).messages
    assert "conv: 3 of 6 outputs" in messages
    assert "Folded into the weights before them: scale" in messages
    assert any(text.startswith("ms, batch of 64 ") for text in messages)
    assert "Predictions: 4 of 4 are those of the given net" in messages


def test_summary_compares(model: list[str], capfd: Capture) -> None:
    result = run_well(["summary", *model, "--shrink"], capfd)
    assert "4x3x6x6" in result.out
    assert "ms, batch of 1 " in result.out


def test_wrong_input(model: list[str], tmp_path: Path, capfd: Capture) -> None:
    given = (tmp_path / "net.prototxt").read_bytes()
    line = complaint(
        ["export", *model, "--shrink", "--output", str(tmp_path / "net.safetensors")], capfd
    )
    assert "net.prototxt" in line
    assert "another name" in line
    assert (tmp_path / "net.prototxt").read_bytes() == given
    assert not (tmp_path / "net.safetensors").exists()
    assert "phase TEST" in complaint(["summary", *model, "--shrink", "--phase", "TRAIN"], capfd)
    assert "weights" in complaint(["summary", *model[:2], "--shrink"], capfd)


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official models are not here")
def test_official_lenet(tmp_path: Path, capfd: Capture) -> None:
    weights = str(OFFICIAL / "caffe_lenet5_sparse.caffemodel")
    model = ["--model", str(OFFICIAL / "lenet5.prototxt"), "--weights", weights]
    result = run_well(["summary", *model, "--shrink"], capfd)
    rows = [line.split() for line in result.out.splitlines()]
    assert ["total", "21,992", "3,982", "376,298", "93,435"] in rows
    units = [row[2] for row in rows if row[:1] in (["conv1"], ["conv2"], ["ip1"])]
    assert units == ["64x8x24x24", "64x19x8x8", "64x57"]


@pytest.mark.parametrize("layer", ["conv", "scale", "relu"])
def test_what_counts_as_a_loss_stays(
    layer: str, model: list[str], tmp_path: Path, capfd: Capture
) -> None:
    """A loss_weight on what others read counts all channels, as they are before the next layer."""
    apart = NET.replace('"Scale" bottom: "conv" top: "conv"', '"Scale" bottom: "conv" top: "scale"')
    apart = apart.replace('"ReLU" bottom: "conv" top: "conv"', '"ReLU" bottom: "scale" top: "relu"')
    apart = apart.replace('bottom: "conv" top: "ip"', 'bottom: "relu" top: "ip"')
    hidden = apart.replace(f'top: "{layer}"', f'top: "{layer}" loss_weight: 0.01')
    (tmp_path / "net.prototxt").write_text(hidden)
    losses = []
    for flags in ([], ["--shrink"], ["--fold"], ["--shrink", "--fold"]):
        result = run_well(["test", *model, "--iterations", "2", "--json", *flags], capfd)
        losses.append(json.loads(result.out)["loss"])
    assert losses[1:] == pytest.approx(losses[:1] * 3, rel=1e-6)
    assert losses[0] != pytest.approx(json.loads(result.out)["outputs"]["loss"], rel=1e-2)
    # What is exported has no losses.
    out = tmp_path / "small.caffemodel"
    result = run_well(["export", *model, "--shrink", "--output", str(out), "--batch", "4"], capfd)
    assert "conv: 3 of 6 outputs" in result.out
