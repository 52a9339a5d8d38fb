"""Models with and without masks, of plain Caffe and both forks, in nets of every kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.layers.base import Context
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.weights import load_weights, save_weights
from tests.nets import input_layer, ip, layer, make_net, recorded_log
from tests.weights.test_transfer import DATA, ENDINGS, complaint, plain, randomize, write

KINDS = ["plain", "holmes", "guo"]


def masked_net(kind: str, bias: bool) -> Net:
    """A net of plain Caffe, of HolmesShuan's kind, or of yiwenguo's."""
    text = DATA + layer(
        "conv",
        "Convolution",
        "data",
        "conv",
        "convolution_param { num_output: 2 kernel_size: 3 BIAS }",
    )
    text += ip("a", "conv").replace("num_output: 5", "num_output: 5 BIAS")
    text = text.replace("BIAS", f"bias_term: {str(bias).lower()}")
    if kind == "guo":
        text = text.replace("'Convolution'", "'CConvolution'")
        text = text.replace("'InnerProduct'", "'CInnerProduct'")
    return make_net(text, context=Context(surgery=kind == "holmes"))


def effective(net: Net, name: str) -> list[np.ndarray]:
    found = net.layer(name)
    assert isinstance(found, WeightedLayer)
    return [p.detach().numpy() for p in found.effective() if p is not None]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
@pytest.mark.parametrize("ending", ENDINGS)
def test_models_of_every_kind_fit_nets_of_every_kind(
    tmp_path: Path, source: str, target: str, bias: bool, ending: str
) -> None:
    net = randomize(masked_net(source, bias), 1)
    file = tmp_path / f"m{ending}"
    save_weights(net, file, hdf5=ending.endswith("h5"))
    other = masked_net(target, bias)
    load_weights(other, str(file))
    for name in ("conv", "a"):
        mine, theirs = effective(other, name), effective(net, name)
        np.testing.assert_array_equal(mine[0], theirs[0])
        if bias:
            np.testing.assert_array_equal(mine[1], theirs[1])
        if "plain" not in (source, target):
            # What is pruned keeps its value, so that it may come back.
            np.testing.assert_array_equal(
                other.params[name][0].detach(), net.params[name][0].detach()
            )
            index = 2 if bias else 1
            np.testing.assert_array_equal(other.params[name][index], net.params[name][index])
        if source == "plain":
            masks = other.params[name][2 if bias else 1 :]
            assert all((mask == 1).all() for mask in masks)


def test_applying_a_stored_mask_is_logged(tmp_path: Path) -> None:
    save_weights(randomize(masked_net("holmes", True), 1), tmp_path / "m")
    with recorded_log() as messages:
        load_weights(masked_net("plain", True), str(tmp_path / "m"))
    assert "Applying the stored mask to the weights of layer conv" in messages


def test_masks_are_counted_apart_from_the_weights(tmp_path: Path) -> None:
    file = write(tmp_path / "m", conv=[np.ones((2, 3, 1, 1), np.float32)])
    assert ": the model has 1, the layer 2 and 1 of masks" in complaint(
        masked_net("holmes", True), file
    )


def test_a_bias_is_not_taken_for_a_mask(tmp_path: Path) -> None:
    # A weight of 5 x 5 and a bias of 5 for a layer without bias: they would even broadcast.
    text = input_layer(x=(2, 5)) + ip("a", "x").replace(
        "num_output: 5", "num_output: 5 bias_term: 0"
    )
    text = text.replace("bias_term: 0", "bias_term: false")
    file = write(tmp_path / "m", a=[np.ones((5, 5), np.float32), np.ones(5, np.float32)])
    wanted = "layer 'a': Incompatible number of blobs: the model has 2, the layer 1"
    assert wanted in complaint(plain(text), file)
    # With its mask the layer has as many blobs as the model, so that their number says nothing.
    wanted = (
        "layer 'a': the model's blobs are no weights with masks of their shape: 5 5 (25), 5 (5)"
    )
    assert wanted in complaint(make_net(text), file)


def test_a_mask_is_not_taken_for_a_bias(tmp_path: Path) -> None:
    weight = np.ones((5, 60), np.float32)
    file = write(tmp_path / "m", a=[weight, weight])
    assert "param 1 weights; shape mismatch" in complaint(plain(DATA + ip("a", "data")), file)
