"""Where outputs arrive: one that changes is seen there, when the net runs."""

from __future__ import annotations

import torch

from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net.channels import trace
from tests.nets import input_layer, layer, make_net

CONV = "convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: 'xavier' } }"
NET = (
    input_layer(data=(1, 2, 4, 4))
    + layer("a", "Convolution", "data", "a", CONV)
    + layer("b", "Convolution", "data", "b", CONV)
    + layer("scaled", "Scale", "a", "scaled")
    + layer("biased", "Bias", "scaled", "biased")
    + layer("relu", "PReLU", "biased", "biased")
    + layer("sum", "Eltwise", "biased b", "sum")
    + layer("all", "Concat", "sum data b", "all")
    + layer("pool", "Pooling", "all", "pool", "pooling_param { kernel_size: 2 stride: 2 }")
    + layer("flat", "Flatten", "pool", "flat")
    + layer("ip", "InnerProduct", "flat", "ip", "inner_product_param { num_output: 2 }")
)


def layers_of(text: str) -> tuple[dict[str, WeightedLayer], list[str], dict[str, list[list[int]]]]:
    """The layers with weights, those that are held, and what arrives at each."""
    net = make_net(text)
    found = {
        step.layer.name: step.layer for step in net.steps if isinstance(step.layer, WeightedLayer)
    }
    flow = trace(net, list(found.values()))
    inputs = {name: flow.inputs[layer].tolist() for name, layer in found.items()}
    return found, sorted(layer.name for layer in flow.held), inputs


def test_through_all_that_keeps_channels_apart() -> None:
    _, held, inputs = layers_of(NET)
    assert held == ["ip"]  # its outputs are the net's
    nobody = 3 + 3 + 2
    assert inputs["a"] == inputs["b"] == [[nobody], [nobody]]
    arriving = [{0, 3}, {1, 4}, {2, 5}, {nobody}, {nobody}, {3}, {4}, {5}]
    assert [set(numbers) for numbers in inputs["ip"]] == [n for n in arriving for _ in range(4)]
    net = make_net(NET)
    flow = trace(net, [s.layer for s in net.steps if isinstance(s.layer, WeightedLayer)])
    assert flow.added().tolist() == [0, 1, 2, 0, 1, 2, 6, 7, 8]


def test_what_arrives_changes_what_is_read() -> None:
    net = make_net(NET)
    data = {"data": torch.rand(1, 2, 4, 4)}
    before = net(data)["flat"][0]
    for name, first in (("a", 0), ("b", 3)):
        for output in range(3):
            bias = net.params[name][1].data
            bias[output] += 10
            changed = net(data)["flat"][0] != before
            bias[output] -= 10
            arriving = [first + output in numbers for numbers in layers_of(NET)[2]["ip"]]
            assert changed.tolist() == arriving


def test_a_shared_weight_and_groups_are_held() -> None:
    shared = "param { name: 'w' } param { name: 'b' } param { name: 'm' } "
    grouped = CONV.replace("num_output: 3", "num_output: 3 group: 3")
    text = (
        input_layer(data=(1, 3, 4, 4))
        + layer("a", "Convolution", "data", "a", shared + CONV)
        + layer("b", "Convolution", "a", "b", shared + CONV)
        + layer("c", "Convolution", "b", "c", CONV)
        + layer("d", "Convolution", "c", "d", grouped)
        + layer("e", "Convolution", "d", "e", CONV)
        + layer("f", "Convolution", "e", "f", CONV)
    )
    _, held, _ = layers_of(text)
    assert held == ["a", "b", "c", "d", "f"]
