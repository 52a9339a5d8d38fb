"""Bytes by layer, against sums over the shapes of a small net, on a GPU against the allocator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from caffe_dns import load_net
from caffe_dns.net import Net, fusion
from caffe_dns.net.net import PassObserver
from caffe_dns.net.wiring import Step
from caffe_dns.profile.layer_memory import LayerMemory, measure_memory
from tests.oracle import GOLDEN

NET = """
layer { name: "in" type: "Input" top: "a" top: "label"
  input_param { shape { dim: 4 dim: 6 } shape { dim: 4 } } }
layer { name: "wide" type: "InnerProduct" bottom: "a" top: "b"
  inner_product_param { num_output: 5 } }
layer { name: "relu" type: "ReLU" bottom: "b" top: "b" }
layer { name: "flat" type: "Flatten" bottom: "b" top: "c" }
layer { name: "double" type: "Power" bottom: "c" top: "d" power_param { scale: 2 } }
layer { name: "narrow" type: "InnerProduct" bottom: "d" top: "e" param { name: "w" }
  inner_product_param { num_output: 3 bias_term: false } }
layer { name: "again" type: "InnerProduct" bottom: "d" top: "f" param { name: "w" }
  inner_product_param { num_output: 3 bias_term: false } }
layer { name: "sum" type: "Eltwise" bottom: "e" bottom: "f" top: "g" }
layer { name: "loss" type: "EuclideanLoss" bottom: "g" bottom: "e" }
"""


class Onlooker(PassObserver):
    """Nothing runs as one while somebody looks."""

    def before(self, step: Step, bottoms: list[Tensor]) -> list[Tensor]:
        return bottoms

    def after(self, step: Step, tops: Sequence[Tensor]) -> None:
        pass


def build(tmp_path: Path, text: str = NET) -> Net:
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    return load_net(path, "TRAIN", surgery=False)


def by_name(net: Net) -> dict[str, LayerMemory]:
    return {s.layer.name: m for s, m in zip(net.steps, measure_memory(net), strict=True)}


def test_bytes_are_counted_with_the_layer_that_makes_them(tmp_path: Path) -> None:
    memories = by_name(build(tmp_path))
    assert memories["in"] == LayerMemory(0, 4 * (4 * 6 + 4), 4 * 4 * 6)
    # Nobody needs the top that ReLU reads, for it keeps its own.
    assert memories["wide"] == LayerMemory(4 * (5 * 6 + 5), 4 * 4 * 5, 0)
    assert memories["relu"] == LayerMemory(0, 4 * 4 * 5, 4 * 4 * 5)
    # A view of its bottom.
    assert memories["flat"] == LayerMemory()
    assert memories["double"] == LayerMemory(0, 4 * 4 * 5, 4 * 4 * 5)
    assert memories["d_double_0_split"] == LayerMemory()
    # The weight is shared: it counts once.
    assert memories["narrow"] == LayerMemory(4 * 3 * 5, 4 * 4 * 3, 0)
    assert memories["again"] == LayerMemory(0, 4 * 4 * 3, 0)
    assert memories["sum"].tops == 4 * 4 * 3
    assert memories["loss"].tops == 4


def test_masks_count_as_parameters_and_masked_weights_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(GOLDEN)
    nets = [
        load_net("runs/surgery_holmes/train_val.prototxt", "TRAIN", surgery=surgery)
        for surgery in (False, True)
    ]
    plain, pruned = map(by_name, nets)
    weights = {
        name: layer.blobs[0].nbytes
        for name in ("conv1", "ip1")
        if (layer := nets[0].layer(name)) is not None
    }
    for name, size in weights.items():
        assert pruned[name].parameters - plain[name].parameters == size
        assert pruned[name].kept - plain[name].kept == size
    for net in nets:
        net.close()


def test_layers_that_read_ahead_are_stopped_and_can_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    net = load_net("runs/sgd_inv/train_val.prototxt", "TRAIN")
    memories = by_name(net)
    assert memories["mnist"].tops == 4 * (32 * 28 * 28 + 32)
    assert memories["mnist"].kept == 4 * 32 * 28 * 28
    source = net.steps[0].layer
    assert source._feed is None
    net.forward()
    net.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_is_kept_is_what_the_allocator_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    # Layers are measured one by one, with masks of their own.
    monkeypatch.setattr(fusion, "DEVICES", ())
    device = torch.device("cuda", 0)
    net = load_net("runs/bn_inception/train_val.prototxt", "TRAIN", device=device)
    memories = measure_memory(net)
    batch = net.read_sources()
    net.close()
    net.observer = Onlooker()
    net.loss(net.compute(batch)).backward()  # which allocates workspaces for good
    for parameter in net.parameters():
        parameter.grad = None
    before = torch.cuda.memory_allocated(device)
    blobs = net.compute(batch)
    loss = net.loss(blobs)
    blobs.clear()
    left = torch.cuda.memory_allocated(device) - before
    kept = sum(m.kept for s, m in zip(net.steps, memories, strict=True) if not s.layer.is_source)
    assert left == pytest.approx(kept, rel=0.05)
    assert loss.requires_grad
    for step, memory in zip(net.steps, memories, strict=True):
        if not step.layer.is_source:
            assert memory.peak is not None
            assert memory.peak >= memory.tops
