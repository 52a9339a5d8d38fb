"""Layers that run as one against the same layers one after the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from caffe_dns.net import Net, fusion
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN, Phase
from tests.nets import input_layer, layer, make_net

DATA = input_layer(data=(5, 3, 4, 6))
CONV = layer(
    "conv",
    "Convolution",
    "data",
    "a",
    "convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: 'xavier' } }",
)
SCALE = "scale_param {{ filler {{ type: 'uniform' min: 0.5 max: 2 }} bias_term: {} }}"
LOSS = "layer { name: 'loss' type: 'Reduction' bottom: 'b' top: 'loss' loss_weight: 1 "
LOSS += "reduction_param { operation: SUMSQ } }"


def net_of(middle: str, phase: Phase = TRAIN) -> Net:
    text = DATA + CONV + middle
    text += layer("tanh", "TanH", "a", "b") + LOSS
    return make_net(text, phase=phase)


def results(net: Net, *, inner: bool = True) -> dict[str, torch.Tensor]:
    """Tops, gradients and statistics after two passes on the same data."""
    data = torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    for _ in range(2):
        blobs = net.compute({"data": data}, inner=inner)
        net.loss(blobs).backward()
    found = {name: blob.detach() for name, blob in blobs.items()}
    for param in net.learnable_params:
        key = f"{param.layer.name}/{param.index}"
        found[key] = param.tensor.detach()
        if param.tensor.grad is not None:
            found[f"{key} gradient"] = param.tensor.grad
    return found


def one_by_one(net: Net) -> Net:
    """The net, whose layers run by themselves from now on."""
    net.fusion = fusion.plan_fusion([], net.context)
    return net


def compare(
    middle: str,
    monkeypatch: pytest.MonkeyPatch,
    phase: Phase = TRAIN,
    devices: tuple[str, ...] = ("cpu",),
) -> list[list[str]]:
    """Check the net with chains against that without; returns the names of the chains' layers."""
    apart = results(one_by_one(net_of(middle, phase)))
    monkeypatch.setattr(fusion, "DEVICES", devices)
    net = net_of(middle, phase)
    together = results(net)
    assert together.keys() == apart.keys()
    for name, wanted in apart.items():
        torch.testing.assert_close(together[name], wanted, rtol=1e-4, atol=1e-5, msg=name)
    return [[step.layer.name for step in chain.steps] for chain in net.fusion.layers[True].values()]


BN = layer("bn", "BatchNorm", "a", "a")
RELU = layer("relu", "ReLU", "a", "a")
SCALED = layer("scale", "Scale", "a", "a", SCALE.format("true"))


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("bias", ["true", "false"])
@pytest.mark.parametrize("settings", ["", "batch_norm_param { use_global_stats: false }"])
def test_the_same_in_one_pass(
    phase: Phase, bias: str, settings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    middle = layer("bn", "BatchNorm", "a", "a", settings)
    middle += layer("scale", "Scale", "a", "a", SCALE.format(bias)) + RELU
    assert compare(middle, monkeypatch, phase) == [["conv", "bn", "scale", "relu"]]


@pytest.mark.parametrize(
    ("middle", "chains"),
    [
        (BN, [["conv", "bn"]]),
        (BN + RELU, [["conv", "bn", "relu"]]),
        (RELU, [["conv", "relu"]]),
        (RELU + BN, [["conv", "relu"]]),
        (BN + layer("scale", "Scale", "a", "d"), [["conv", "bn"]]),
        (BN + layer("scale", "Scale", "a", "a", "scale_param { axis: 2 }"), [["conv", "bn"]]),
        (BN + layer("scale", "Scale", "a", "a", "scale_param { num_axes: 2 }"), [["conv", "bn"]]),
        (layer("scale", "Scale", "a", "a") + BN + RELU, [["bn", "relu"]]),
        (layer("relu", "ReLU", "a", "d"), []),
        (layer("relu", "ReLU", "a", "a", "relu_param { negative_slope: 0.1 }"), []),
        (layer("bn", "BatchNorm", "a", "d") + layer("relu", "ReLU", "d", "d"), [["bn", "relu"]]),
        (layer("other", "TanH", "data", "d") + BN, []),
    ],
)
def test_what_belongs_together(
    middle: str, chains: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare(middle, monkeypatch) == chains


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize(
    ("middle", "chains"),
    [
        (BN + SCALED + RELU, [["bn", "scale", "relu"]]),
        (BN + SCALED, [["bn", "scale"]]),
        (BN + RELU, []),
        (RELU, []),
    ],
)
def test_what_belongs_together_without_kernels(
    middle: str, chains: list[list[str]], phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compare(middle, monkeypatch, phase, devices=()) == chains


OTHER = CONV.replace("'conv'", "'other'").replace("'a'", "'c'")


@pytest.mark.parametrize(
    ("settings", "relu", "rows"),
    [
        ("", RELU, [["sum", "relu"]]),
        ("coeff: 1 coeff: 1", RELU, [["sum", "relu"]]),
        ("coeff: 1 coeff: 0.5", RELU, []),
        ("operation: PROD", RELU, []),
        ("", layer("relu", "ReLU", "a", "d"), []),
        ("", layer("relu", "ReLU", "a", "a", "relu_param { negative_slope: 0.1 }"), []),
    ],
)
def test_a_sum_and_its_relu(
    settings: str, relu: str, rows: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DATA + CONV.replace("'a'", "'b'") + OTHER
    text += "layer { name: 'sum' type: 'Eltwise' bottom: 'b' bottom: 'c' top: 'a' "
    text += f"eltwise_param {{ {settings} }} }}" + relu
    text += layer("tanh", "TanH", "a", "e") + LOSS.replace("'b'", "'e'")
    apart = results(one_by_one(make_net(text)))
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    net = make_net(text)
    together = results(net)
    names = [
        [step.layer.name for step in group.steps] for group in net.fusion.layers[True].values()
    ]
    assert names == rows
    assert together.keys() == apart.keys()
    for name, wanted in apart.items():
        torch.testing.assert_close(together[name], wanted, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    ("middle", "bottoms", "readers", "group"),
    [
        (BN, "ca", 2, ["conv", "bn", "sum", "relu", "s_relu_0_split"]),
        (BN + SCALED, "ac", 3, ["conv", "bn", "scale", "sum", "relu", "s_relu_0_split"]),
        (BN + SCALED, "ac", 1, ["conv", "bn", "scale", "sum", "relu"]),
        (BN + RELU, "ac", 1, ["conv", "bn", "relu"]),
        (SCALED, "ac", 1, ["sum", "relu"]),
    ],
)
@pytest.mark.parametrize("phase", [TRAIN, TEST])
def test_a_sum_belongs_to_a_chain_where_nobody_looks(
    middle: str,
    bottoms: str,
    readers: int,
    group: list[str],
    phase: Phase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = DATA + OTHER + CONV + middle
    text += f"layer {{ name: 'sum' type: 'Eltwise' bottom: '{bottoms[0]}' bottom: '{bottoms[1]}' "
    text += "top: 's' }" + layer("relu", "ReLU", "s", "s")
    for number in range(readers):
        text += layer(f"tanh{number}", "TanH", "s", f"t{number}")
        text += LOSS.replace("'b'", f"'t{number}'").replace("'loss'", f"'loss{number}'")
    apart = results(one_by_one(make_net(text, phase=phase)), inner=False)
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    net = make_net(text, phase=phase)
    together = results(net, inner=False)
    groups = [
        [step.layer.name for step in each.steps] for each in net.fusion.layers[False].values()
    ]
    assert groups[0] == group
    assert together.keys() == apart.keys()
    for name, wanted in apart.items():
        torch.testing.assert_close(together[name], wanted, rtol=1e-4, atol=1e-5, msg=name)


POOL = layer("pool", "Pooling", "a", "p", "pooling_param { kernel_size: 2 stride: 2 }")


@pytest.mark.parametrize(
    ("middle", "chains"),
    [
        (POOL, [["conv", "pool"]]),
        (RELU + POOL, [["conv", "relu", "pool"]]),
        (BN + RELU + POOL, [["conv", "bn", "relu", "pool"]]),
        (POOL.replace("kernel", "pool: AVE kernel"), []),
    ],
)
def test_a_pooling_belongs_to_it_where_nobody_looks(
    middle: str, chains: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = DATA + CONV.replace("'xavier' }", "'xavier' } bias_filler { type: 'uniform' }") + middle
    text += layer("tanh", "TanH", "p", "b") + LOSS
    apart = results(one_by_one(make_net(text)))
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    net = make_net(text)
    together = results(net, inner=False)
    found = [
        [step.layer.name for step in chain.steps] for chain in net.fusion.layers[False].values()
    ]
    assert found == chains
    # Whatever a layer above has read is given up.
    assert together.keys() == apart.keys() - {"data", "a", "p", "b"}
    for name, value in together.items():
        torch.testing.assert_close(value, apart[name], rtol=1e-4, atol=1e-5, msg=name)


FILLED = "weight_filler { type: 'xavier' }"
OFFICIAL = f"num_output: 3 kernel_size: 2 {FILLED} bias_filler {{ type: 'gaussian' }}"
DENSE = f"num_output: 4 sparsity_term: false {FILLED}"
PLAIN = f"num_output: 2 bias_term: false {FILLED}"
MASKED = (
    DATA
    + CONV
    + layer("official", "CConvolution", "a", "c", f"convolution_param {{ {OFFICIAL} }}")
    + layer("dense", "InnerProduct", "c", "d", f"inner_product_param {{ {DENSE} }}")
    + layer("ip", "InnerProduct", "d", "b", f"inner_product_param {{ {PLAIN} }}")
    + LOSS
)


@pytest.mark.parametrize("large", [fusion.LARGE, 20])
def test_masks_are_the_same_all_at_once(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "LARGE", large)
    found = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(fusion, "DEVICES", devices)
        net = make_net(MASKED)
        assert (net.fusion.masks is not None) == bool(devices)
        for param in net.learnable_params:
            if param.is_mask:
                param.tensor.view(-1)[::2] = 0
        found.append(results(net))
    apart, together = found
    assert together.keys() == apart.keys()
    for name, wanted in apart.items():
        torch.testing.assert_close(together[name], wanted, rtol=1e-6, atol=1e-7, msg=name)


def test_gradients_reach_masked_parameters_while_backward_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    net = make_net(MASKED)
    events: list[str] = []

    def note(name: str) -> Callable[[torch.Tensor], None]:
        return lambda _: events.append(name)

    for layer_name in ("conv", "official", "dense", "ip"):
        net.params[layer_name][0].register_post_accumulate_grad_hook(note(layer_name))
    blobs = net.compute({"data": torch.ones(5, 3, 4, 6)})
    for blob in ("a", "c", "d"):
        blobs[blob].register_hook(note(blob))
    net.loss(blobs).backward()
    for parameter, later in (("ip", "c"), ("dense", "a"), ("official", "conv")):
        assert events.index(parameter) < events.index(later), events


def test_masks_are_applied_anew_in_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "DEVICES", ("cpu",))
    net = make_net(MASKED)
    data = {"data": torch.ones(5, 3, 4, 6)}
    assert net(data)["b"].abs().max() > 0
    for blob in net.params["ip"][1:]:
        blob.zero_()
    assert net(data)["b"].abs().max() == 0
