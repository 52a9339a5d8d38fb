"""Histograms with thresholds, and pictures of masks."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch

from caffe_dns.net import Net
from caffe_dns.reports.page.parts import Chart, Pictures
from caffe_dns.reports.page.weights import histogram_section, mask_section
from tests.nets import input_layer, layer, make_net


def inner_product(kind: str, own: str = "", settings: str = "", inputs: int = 40) -> Net:
    return make_net(
        input_layer(data=(1, inputs))
        + layer(
            "<ip>", kind, "data", "ip", f"inner_product_param {{ num_output: 30 {own} }} {settings}"
        )
    )


def fill(net: Net, seed: int = 3) -> Any:
    """Normal weights; a third of them is pruned."""
    generator = torch.Generator().manual_seed(seed)
    layer: Any = net.layer("<ip>")
    with torch.no_grad():
        layer.blobs[0].normal_(0.5, 2.0, generator=generator)
        if layer.mask_indices:
            layer.mask_blobs()[0].copy_(torch.rand(30, 40, generator=generator) > 1 / 3)
    return layer


def only(charts: list[Any]) -> Chart:
    (chart,) = charts
    assert isinstance(chart, Chart)
    return chart


def lines(chart: Chart) -> list[float]:
    return [shape["x0"] for shape in chart.layout["shapes"]]


def test_every_weight_is_counted_once() -> None:
    net = inner_product("InnerProduct", "threshold: 0.5")
    layer = fill(net)
    chart = only(histogram_section(net, {}).parts)
    weight, mask = (
        blob.detach().numpy().ravel() for blob in (layer.blobs[0], layer.mask_blobs()[0])
    )
    kept, pruned = chart.traces
    assert (kept["name"], pruned["name"]) == ("kept", "pruned")
    assert sum(n or 0 for n in kept["y"]) == mask.sum()
    assert sum(n or 0 for n in pruned["y"]) == (1 - mask).sum()
    half = (kept["x"][1] - kept["x"][0]) / 2
    inside = [np.sum((mask == 1) & (abs(weight - x) < half)) for x in kept["x"]]
    # The middles are rounded, so that a weight at an edge may be on the other side.
    assert sum(abs(a - (b or 0)) for a, b in zip(inside, kept["y"], strict=True)) <= 8
    middles = [float(row[0]) for row in chart.table.rows]
    assert middles == pytest.approx(kept["x"], rel=1e-3)
    assert [row[1] for row in chart.table.rows] == [f"{n or 0:,}" for n in kept["y"]]


def test_thresholds_by_deviation() -> None:
    net = inner_product("InnerProduct", "threshold: 0.5")
    weight = fill(net).blobs[0].detach().double().numpy()
    for given, threshold in (({}, 0.5), ({"<ip>": 1.25}, 1.25)):
        chart = only(histogram_section(net, given).parts)
        reach = threshold * weight.std()
        assert lines(chart) == pytest.approx(
            [weight.mean() - reach, weight.mean() + reach], rel=1e-5
        )


def test_thresholds_by_magnitude() -> None:
    net = inner_product("CInnerProduct", "", "cinner_product_param { c_rate: 0.75 }")
    assert lines(only(histogram_section(net, {}).parts)) == []  # nothing was measured yet
    layer = fill(net)
    layer.moments.copy_(torch.tensor([2.0, 0.4]))
    limit = 2.0 + 0.75 * 0.4
    want = [-1.1 * limit, -0.9 * limit, 0.9 * limit, 1.1 * limit]
    assert lines(only(histogram_section(net, {}).parts)) == pytest.approx(want)


def test_weights_that_are_not_pruned_and_not_finite() -> None:
    net = inner_product("InnerProduct", "sparsity_term: false")
    layer = fill(net)
    with torch.no_grad():
        layer.blobs[0][0, 0] = torch.nan
    chart = only(histogram_section(net, {}).parts)
    assert [trace["name"] for trace in chart.traces] == ["kept"]
    assert sum(n or 0 for n in chart.traces[0]["y"]) == 1200 - 1
    assert mask_section(net).parts == [] and lines(chart) == []
    with torch.no_grad():
        layer.blobs[0].fill_(0.25)
    assert sum(n or 0 for n in only(histogram_section(net, {}).parts).traces[0]["y"]) == 1200


def picture(net: Net) -> tuple[np.ndarray, str]:
    (pictures,) = mask_section(net).parts
    assert isinstance(pictures, Pictures)
    ((title, says, png),) = pictures.pictures
    assert title == "<ip>"
    drawn = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert drawn is not None
    return drawn, says


def test_a_small_mask_is_drawn_pixel_by_pixel() -> None:
    net = inner_product("InnerProduct")
    mask = fill(net).mask_blobs()[0].numpy()
    drawn, says = picture(net)
    assert np.array_equal(drawn[..., 3], np.uint8(255) * (mask != 0))
    assert says.startswith(f"{int(mask.sum())} of 1,200 weights kept")


def test_a_large_mask_is_drawn_by_shares() -> None:
    net = inner_product("InnerProduct", inputs=5120)
    mask: Any = net.layer("<ip>")
    mask.mask_blobs()[0].zero_()
    mask.mask_blobs()[0][2, :5] = 1  # half of the tenth part of a row that a pixel is
    mask.mask_blobs()[0][3, 10:20] = 1
    drawn, _ = picture(net)
    assert drawn.shape == (30, 512, 4)
    assert drawn[2, 0, 3] == 128 and drawn[3, 1, 3] == 255
    assert np.count_nonzero(drawn[..., 3]) == 2
