"""Where the layers of a net stand, and what they say."""

from __future__ import annotations

import re
from typing import Any

import pytest

from caffe_dns.reports.page.graph import graph
from caffe_dns.reports.page.parts import Graph
from caffe_dns.reports.summary import summarize
from tests.nets import layer, make_net

CONV = "convolution_param { num_output: 4 kernel_size: 3 pad: 1 sparsity_term: false }"
#: A branch past two layers, a layer in place, and a label that goes to the end.
NET = (
    layer("data", "Input", "", "data", "input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } }")
    + layer("label", "Input", "", "label", "input_param { shape { dim: 2 } }")
    + layer("conv1", "Convolution", "data", "conv1", CONV)
    + layer("relu1", "ReLU", "conv1", "conv1")
    + layer("conv2", "Convolution", "conv1", "conv2", CONV)
    + layer("conv3", "Convolution", "conv2", "conv3", CONV)
    + 'layer { name: "sum" type: "Eltwise" bottom: "conv3" bottom: "conv1" top: "sum" }'
    + layer("ip", "InnerProduct", "sum", "ip", "inner_product_param { num_output: 5 }")
    + 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }'
)


@pytest.fixture(scope="module")
def drawn() -> Graph:
    net = make_net(NET)
    return graph(net, summarize(net), trained=False)


def test_rows(drawn: Graph) -> None:
    heights = {node.name: node.y for node in drawn.nodes}
    assert list(heights) == ["data", "label", "conv1", "conv2", "conv3", "sum", "ip", "loss"]
    assert heights["data"] == heights["label"] == 0
    order = ["data", "conv1", "conv2", "conv3", "sum", "ip", "loss"]
    assert sorted(order, key=heights.__getitem__) == order
    assert len({heights[name] for name in order}) == len(order)
    for node in drawn.nodes:
        assert 0 <= node.x <= drawn.width - drawn.node_width
        assert 0 <= node.y <= drawn.height - drawn.node_height


def test_ways_lead_from_bottoms_to_tops_past_what_is_between(drawn: Graph) -> None:
    centres = {n.name: (round(n.x + drawn.node_width / 2), round(n.y)) for n in drawn.nodes}
    ends = []
    for edge in drawn.edges:
        points = [int(number) for number in re.findall(r"-?\d+", edge)]
        start, end = (points[0], points[1] - round(drawn.node_height)), tuple(points[-2:])
        (source,) = (name for name, place in centres.items() if place == start)
        (target,) = (name for name, place in centres.items() if place == end)
        ends.append((source, target))
        # Straight pieces, which pass a row, keep off its layers.
        corners = list(zip(points[0::2], points[1::2], strict=True))
        for (x, y), (_, _), (_, _), (to_x, to_y) in zip(
            corners[::3], corners[1::3], corners[2::3], corners[3::3], strict=False
        ):
            if x == to_x and to_y - y == drawn.node_height:
                row = [n for n in drawn.nodes if round(n.y) == y]
                assert not any(n.x <= x <= n.x + drawn.node_width for n in row)
    assert sorted(ends) == sorted(
        [
            *(("data", "conv1"), ("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "sum")),
            *(("conv1", "sum"), ("sum", "ip"), ("ip", "loss"), ("label", "loss")),
        ]
    )


def test_layers_do_not_cover_each_other(drawn: Graph) -> None:
    for one in drawn.nodes:
        for other in drawn.nodes:
            if one is not other and one.y == other.y:
                assert abs(one.x - other.x) >= drawn.node_width


def test_what_layers_say(drawn: Graph) -> None:
    says = {node.name: node.says for node in drawn.nodes}
    # 4 filters of 3x3x3 and a bias each; at 64 places.
    parameters, macs = 4 * 27 + 4, 4 * 27 * 64
    assert says["conv1"] == (
        f"conv1, Convolution, ReLU, output 2x4x8x8, {parameters} parameters, "
        f"{macs:,} multiply-accumulates"
    )
    assert says["loss"] == "loss, SoftmaxWithLoss, output 1"
    assert all(node.kept is None for node in drawn.nodes)


def test_what_is_left() -> None:
    net = make_net(NET)
    ip_layer: Any = net.layer("ip")
    ip_layer.blobs[0].data.fill_(1)
    ip_layer.mask_blobs()[0][0] = 0  # one of 5 outputs
    drawn = graph(net, summarize(net), trained=True)
    (ip,) = (node for node in drawn.nodes if node.name == "ip")
    weights = 5 * 4 * 64
    kept = weights * 4 // 5
    assert ip.kept == pytest.approx(kept / (weights + 5))
    assert ip.lines[-2:] == [f"{kept:,} of {weights + 5:,}", f"{kept:,} MACs"]
    rows = {row[0]: row for row in drawn.table.rows}
    assert rows["ip"][3:] == [
        *(f"{weights + 5:,}", f"{kept:,}", f"{100 * (1 - kept / (weights + 5)):.2f} %"),
        *(f"{weights:,}", f"{kept:,}"),
    ]
    assert rows["relu1"][3:] == ["", "", "", "", ""]
    total = [int(rows["total"][i].replace(",", "")) for i in (3, 6)]
    assert total == [
        sum(int(r[i].replace(",", "") or 0) for r in drawn.table.rows[:-1]) for i in (3, 6)
    ]
