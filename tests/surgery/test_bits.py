"""Bits of each layer, found by scoring: against nets that are shared by hand and run end to end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.surgery.bits import ShareableLayer, choose_bits
from caffe_dns.surgery.kept_entries import weighted_layers
from caffe_dns.surgery.shared_values import find_values, nearest

pytestmark = pytest.mark.usefixtures("in_golden_folder")

BATCHES = 3
LAYERS = ("conv1", "conv2", "ip1", "ip2")


def load() -> Net:
    """Trained for forty iterations; a third of its weights are pruned, some by zeros alone."""
    definition = Path("runs/surgery_holmes/train_val.prototxt")
    net = load_net(definition, "TEST", "runs/sgd_inv/snap_iter_40.caffemodel")
    with torch.no_grad():
        for name in LAYERS:
            weight, _, mask = net.params[name]
            mask.view(-1)[::3] = 0
            weight.view(-1)[1::7] = 0
    return net


def score(net: Net) -> float:
    with torch.no_grad():
        return float(np.mean([float(net()["accuracy"]) for _ in range(BATCHES)]))


def shared_by_hand(bits: Mapping[str, int]) -> float:
    net = load()
    for name, own in bits.items():
        weight, bias, mask = (blob.detach().numpy() for blob in net.params[name])
        kept = (mask != 0) & (weight != 0)
        entries = np.concatenate([weight[kept], bias[bias != 0]])
        values = find_values(entries, 2**own).astype(np.float32)
        weight[kept] = values[nearest(values, weight[kept])]
        bias[bias != 0] = values[nearest(values, bias[bias != 0])]
    result = score(net)
    net.close()
    return result


@pytest.mark.parametrize("limit", [0.004, 0.05])
def test_the_score_is_that_of_a_net_shared_by_hand(limit: float) -> None:
    net = load()
    before = score(net)
    blobs = {name: [blob.detach().clone() for blob in net.params[name]] for name in LAYERS}
    found = choose_bits(net, BATCHES, limit)
    assert list(found.of_layer) == list(LAYERS)
    assert found.score_name == "accuracy"
    assert found.before == pytest.approx(before, abs=1e-7)
    assert found.after == pytest.approx(shared_by_hand(found.of_layer), abs=1e-7)
    assert found.before - found.after <= limit + 1e-6
    for name, arrays in blobs.items():
        for blob, array in zip(net.params[name], arrays, strict=True):
            assert torch.equal(blob, array)
    assert score(net) == pytest.approx(before, abs=1e-7)  # reads from the first record on again
    net.close()


def test_fewer_bits_for_a_larger_loss() -> None:
    net = load()
    strict, lax = (choose_bits(net, BATCHES, limit).of_layer for limit in (0.0, 0.2))
    assert sum(lax.values()) < sum(strict.values())
    assert all(2 <= bits <= 8 for bits in (*strict.values(), *lax.values()))
    net.close()


def test_what_a_layer_saves() -> None:
    net = load()
    layer = ShareableLayer(next(weighted_layers(net)))
    weight, bias, mask = (blob.detach().numpy() for blob in net.params["conv1"])
    entries = np.concatenate([weight[(mask != 0) & (weight != 0)], bias[bias != 0]])
    assert layer.total == 8 * len(entries)
    (bits,) = layer.settings_for([0.625])
    assert bits == 3
    values = find_values(entries, 8)
    error = ((values[nearest(values, entries)].astype(np.float64) - entries) ** 2).sum()
    saved, share = layer.effect(bits)
    assert saved == 5 * len(entries)
    assert share == pytest.approx(error / (entries.astype(np.float64) ** 2).sum(), rel=1e-5)
    net.close()


def test_no_bits_are_good_enough() -> None:
    """Weights so small that float16 has nothing but 0 for them."""
    net = load()
    with torch.no_grad():
        weight, bias, _ = net.params["ip2"]
        weight.mul_(1e-9)
        bias.fill_(0)
    with pytest.raises(CaffeError, match=r"with 256 values a layer, accuracy is .* at most 0"):
        choose_bits(net, BATCHES, 0.0)
    net.close()
