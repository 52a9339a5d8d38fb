"""Layers that are pruned by a wanted share, against their rules written out in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.surgery.prunable_layers import (
    PrunableByMagnitude,
    PrunableLayer,
    find_prunable_layers,
)

pytestmark = pytest.mark.usefixtures("in_golden_folder")

SHARES = [0.0, 0.1, 0.5, 0.93, 0.99]


def load(name: str, weights: str = "init", phase: str = "TEST") -> Net:
    folder = Path("runs") / name
    return load_net(folder / "train_val.prototxt", phase, folder / f"{weights}.caffemodel")


def flat(arrays: list[torch.Tensor]) -> np.ndarray:
    return np.concatenate([array.detach().double().numpy().ravel() for array in arrays])


@pytest.mark.parametrize("layer", ["conv1", "ip1"])
def test_deviation_rule(layer: str) -> None:
    (prunable_layer,) = find_prunable_layers(load("surgery_holmes"), [layer])
    weight, bias, mask = prunable_layer.layer.blobs
    before, bias_before = flat([weight]), flat([bias])
    settings = prunable_layer.settings_for(SHARES)
    assert settings == sorted(settings)
    for share, threshold in zip(SHARES, settings, strict=True):
        pruned = np.abs(before - before.mean()) < threshold * before.std()
        assert abs(pruned.sum() - max(share * before.size, 1)) <= 1 + before.size / 1000
        prunable_layer.apply(threshold)
        np.testing.assert_array_equal(flat([weight]), np.where(pruned, 0, before))
        count, energy = prunable_layer.effect(threshold)
        assert count == pruned.sum()
        assert energy == pytest.approx((before[pruned] ** 2).sum() / (before**2).sum())
    prunable_layer.restore()
    np.testing.assert_array_equal(flat([weight]), before)
    np.testing.assert_array_equal(flat([bias]), bias_before)
    assert mask.min() == 1


@pytest.mark.parametrize("layer", ["conv2", "ip2"])
def test_magnitude_rule(layer: str) -> None:
    (prunable_layer,) = find_prunable_layers(load("surgery_guo"), [layer])
    assert isinstance(prunable_layer, PrunableByMagnitude)
    parameters = prunable_layer.layer.blobs[:2]
    before = flat(parameters)
    mu = np.abs(before).mean()
    sigma = np.sqrt((before**2).mean() - mu**2)
    for share, c_rate in zip(SHARES, prunable_layer.settings_for(SHARES), strict=True):
        pruned = np.abs(before) <= 0.9 * max(mu + c_rate * sigma, 0)
        assert abs(pruned.sum() - max(share * before.size, 1)) <= 1 + before.size / 500
        prunable_layer.apply(c_rate)
        np.testing.assert_array_equal(flat(parameters), np.where(pruned, 0, before))
        assert prunable_layer.effect(c_rate)[0] == pruned.sum()


def test_a_pruned_model_is_whole_with_its_masks() -> None:
    net = load("surgery_holmes", "snap_iter_40")
    (prunable_layer,) = find_prunable_layers(net, ["ip1"])
    stored = load("surgery_holmes", "snap_iter_40").params["ip1"]
    weight, effective = stored[0].detach(), (stored[0] * stored[2]).detach()
    now = net.params["ip1"]
    assert torch.equal(now[0] * now[2], effective)
    # The rule looks at all weights, as it does in training.
    prunable_layer.apply(prunable_layer.settings_for([0.2])[0])
    left = int((now[0] * now[2]).count_nonzero())
    assert left == pytest.approx(0.8 * weight.numel(), rel=0.01)
    prunable_layer.restore()
    assert torch.equal(now[0] * now[2], effective)


def test_equal_weights_go_together() -> None:
    net = load("surgery_holmes")
    weight = net.params["ip1"][0].detach()
    weight.reshape(-1)[: weight.numel() * 6 // 10] = 0
    (prunable_layer,) = find_prunable_layers(net, ["ip1"])
    few, many = prunable_layer.settings_for([0.1, 0.9])
    assert prunable_layer.effect(few)[0] >= weight.numel() * 6 // 10
    assert prunable_layer.effect(many)[0] == pytest.approx(0.9 * weight.numel(), rel=0.01)
    weight.fill_(0.25)
    (constant,) = find_prunable_layers(net, ["ip1"])
    assert [constant.effect(setting)[0] for setting in constant.settings_for([0.5])] == [0]


def test_which_layers() -> None:
    def names(prunable_layers: list[PrunableLayer]) -> list[str]:
        return [prunable_layer.name for prunable_layer in prunable_layers]

    assert names(find_prunable_layers(load("surgery_holmes"), [])) == [
        "conv1",
        "conv2",
        "ip1",
        "ip2",
    ]
    assert names(find_prunable_layers(load("surgery_holmes"), ["ip2", "conv1"])) == ["conv1", "ip2"]
    # Spared by its definition, but it can be pruned.
    assert "ip2" in names(find_prunable_layers(load("surgery_holmes_mixed"), []))
    # The second branch shares the weights of the first.
    siamese = load("siamese_shared", phase="TRAIN")
    prunable_layers = find_prunable_layers(siamese, [])
    assert names(prunable_layers) == ["ipa0", "ipb0"]
    assert [prunable_layer.sharers for prunable_layer in prunable_layers] == [["ipa1"], ["ipb1"]]
    with pytest.raises(CaffeError, match=r"layer 'ipa1': .* no weights of its own"):
        find_prunable_layers(siamese, ["ipa1"])


def test_wrong_layers() -> None:
    net = load("surgery_holmes")
    with pytest.raises(CaffeError, match=r"no layer 'ip3' \(did you mean 'ip[12]'\?\)"):
        find_prunable_layers(net, ["conv1", "ip3"])
    with pytest.raises(CaffeError, match="layer 'pool1': type Pooling has no weights"):
        find_prunable_layers(net, ["pool1"])
    net.params["ip1"][0].detach()[0, 0] = torch.nan
    with pytest.raises(CaffeError, match="layer 'ip1': has weights that are not finite"):
        find_prunable_layers(net, [])
