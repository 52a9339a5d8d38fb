"""Tables of layers: parameters, multiplications, and the width of the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from caffe_dns import load_net
from caffe_dns.reports.summary import WIDTH, LayerSummary, summarize, to_table
from tests.export.build import randomize

MODELS = Path(__file__).parents[2] / "models"

NET = """
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 3 dim: 4 dim: 8 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 group: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
  convolution_param { num_output: 5 kernel_size: 2 stride: 2 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "up" top: "bn" }
layer { name: "cip" type: "CInnerProduct" bottom: "bn" top: "cip"
  inner_product_param { num_output: 2 axis: 2 } }
layer { name: "ip" type: "InnerProduct" bottom: "cip" top: "ip"
  inner_product_param { num_output: 7 } }
layer { name: "two" type: "Slice" bottom: "ip" top: "a" top: "b" slice_param { slice_point: 3 } }
"""


def reference(text: str, tmp_path: Path, masks: float) -> tuple[list[LayerSummary], dict]:
    (tmp_path / "net.prototxt").write_text(text)
    net = load_net(tmp_path / "net.prototxt")
    randomize(net)
    for step in net.steps:
        for index in step.layer.mask_indices:
            mask = step.layer.blobs[index]
            mask.copy_((torch.arange(mask.numel()) < masks * mask.numel()).view(mask.shape))
    return summarize(net), {row.name: row for row in summarize(net)}


def test_counts(tmp_path: Path) -> None:
    _, rows = reference(NET, tmp_path, masks=1)
    conv, up, cip, ip = (rows[name] for name in ("conv", "up", "cip", "ip"))
    # conv makes 6 channels of 3 x 3 from 2 channels each, with a kernel of 3 x 2.
    assert conv.shapes == [(3, 6, 3, 3)]
    assert (conv.parameters, conv.macs) == (6 * 2 * 6 + 6, 6 * 9 * 2 * 6)
    # up puts 5 kernels of 2 x 2 at each of 6 x 3 x 3 pixels.
    assert up.shapes == [(3, 5, 6, 6)]
    assert (up.parameters, up.macs) == (6 * 5 * 4, 6 * 9 * 5 * 4)
    # cip multiplies rows of 6 for each of 5 channels of 6 rows.
    assert (cip.parameters, cip.macs) == (2 * 36 + 2, 5 * 2 * 36)
    assert (ip.parameters, ip.macs) == (10 * 7 + 7, 10 * 7)
    # Running statistics are no parameters.
    assert (rows["bn"].parameters, rows["bn"].macs) == (0, 0)
    assert rows["two"].shapes == [(3, 3), (3, 4)]
    assert all(row.kept == row.parameters and row.macs_kept == row.macs for row in rows.values())


def test_what_masks_leave(tmp_path: Path) -> None:
    _, rows = reference(NET, tmp_path, masks=0.5)
    assert rows["conv"].kept == 36 + 6  # HolmesShuan's kind leaves biases alone
    assert rows["conv"].macs_kept == rows["conv"].macs // 2
    assert rows["cip"].kept == 36 + 1
    assert rows["up"].kept == rows["up"].parameters


def test_shared_weights_count_once_and_multiply_twice(tmp_path: Path) -> None:
    ip = (
        'layer { name: "NAME" type: "InnerProduct" bottom: "data" top: "NAME"'
        ' param { name: "w" } inner_product_param { num_output: 4 bias_term: false } }'
    )
    text = NET[: NET.index('layer { name: "conv"')]
    text += ip.replace("NAME", "first") + ip.replace("NAME", "second")
    _, rows = reference(text, tmp_path, masks=1)
    assert [row.parameters for row in rows.values()] == [0, 4 * 8 * 7 * 4, 0]
    assert rows["first"].macs == rows["second"].macs == 4 * 8 * 7 * 4
    assert list(rows) == ["in", "first", "second"]


@pytest.mark.parametrize("trained", [False, True])
def test_table(trained: bool, tmp_path: Path) -> None:
    rows, _ = reference(NET, tmp_path, masks=0.5)
    lines = to_table(rows, trained=trained)
    heading, total = lines[0].split(), next(line for line in lines if line.startswith("total"))
    assert heading[:4] == ["layer", "type", "output", "parameters"]
    assert ("kept" in lines[0]) == trained
    parameters = sum(row.parameters for row in rows)
    kept = sum(row.kept for row in rows)
    assert total.split()[1] == f"{parameters:,}"
    if trained:
        assert total.split()[2] == f"{kept:,}"
        assert f"{kept:,} of {parameters:,} parameters are left" in lines[-2]
    assert any(line.startswith("two ") and line.endswith("3x3 +1") for line in lines)


@pytest.mark.parametrize("folder", ["googlenet", "resnet50"])
def test_large_nets_fit_the_page(folder: str) -> None:
    net = load_net(MODELS / folder / "deploy.prototxt")
    lines = to_table(summarize(net), trained=True)
    assert max(map(len, lines)) <= WIDTH
    names = [line.split()[0] for line in lines[2:-6]]
    assert len(set(names)) == len(names)


def test_long_names_are_cut_in_the_middle() -> None:
    row = LayerSummary("a" * 60 + "/end", "B" * 40, [(1, 2)], 10**9, 10**9, 10**11, 10**11)
    lines = to_table([row], trained=True)
    assert max(map(len, lines)) <= WIDTH
    assert "/end" in lines[2]
    assert ".." in lines[2]
    assert "100,000,000,000" in lines[2]
