"""Bottoms without axes or without numbers: a layer takes them, or says so."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Shape, check_shape
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TRAIN, NetParameter
from caffe_dns.proto.text import read_text
from tests.layers.harness import make_layer, run
from tests.nets import input_layer, layer, make_net
from tests.oracle import GOLDEN

NETS = sorted(path.parent.name for path in GOLDEN.glob("layers/*/net.prototxt"))


def use(param: NetParameter) -> None:
    """Build a net, and compute forward and back."""
    net = Net(param)
    try:
        blobs = net({name: torch.zeros(net.blob_shapes[name]) for name in net.inputs})
        outputs = [blobs[name].sum() for name in net.outputs if blobs[name].requires_grad]
        if outputs:
            torch.stack(outputs).sum().backward()
    finally:
        net.close()


@pytest.mark.parametrize("name", NETS)
def test_empty_bottoms_are_taken_or_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    good = read_text(GOLDEN / "layers" / name / "net.prototxt", NetParameter).message
    good.state.phase = TRAIN
    use(good)
    for at, source in enumerate(good.layer):
        for shape in range(len(source.input_param.shape)):
            dims = list(source.input_param.shape[shape].dim)
            for changed in ([], [0] * len(dims), [*dims[:-1], 0]):
                param = NetParameter()
                param.CopyFrom(good)
                param.layer[at].input_param.shape[shape].dim[:] = changed
                with suppress(CaffeError):
                    use(param)


@pytest.mark.parametrize("shape", [(0, 2**31), (2**62, 0, 7), (0, 2**20, 2**20)])
def test_extents_that_have_no_strides_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CaffeError, match="2147483647 are the most"):
        check_shape(shape)
    check_shape((0, 2**31 - 1))


@pytest.mark.parametrize(
    ("definition", "shapes"),
    [
        ("type: 'Interp' interp_param { zoom_factor: 2 }", [(2, 0, 6, 5)]),
        ("type: 'Reorg' reorg_param { stride: 2 }", [(2, 8, 4, 0)]),
        ("type: 'BN'", [(4, 3, 0)]),
        ("type: 'LabelsequenceAccuracy'", [(4, 4, 0), (4, 2)]),
        ("type: 'Lstm' lstm_param { num_output: 3 }", [(4, 0, 5)]),
        ("type: 'PriorBox' prior_box_param { min_size: 3 }", [(0, 0, 0, 0), (1, 3, 9, 9)]),
        (
            "type: 'ROIPooling' roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 1 }",
            [(2, 3, 9, 0), (4, 5)],
        ),
        ("type: 'LabelSpecificAdd'", [(0, 4), (0,)]),
        (
            "type: 'Yolov3' yolov3_param { num_class: 3 num: 1 biases: [1, 1] mask: 0 }",
            [(2, 8, 0, 5), (2, 1, 4, 5)],
        ),
        (
            "type: 'RegionLoss' region_loss_param { num_class: 3 num: 1 biases: [1, 1] }",
            [(2, 8, 0, 0), (2, 1, 4, 5)],
        ),
        (
            "type: 'YoloDetectionOutput' yolo_detection_output_param { num_classes: 3 num_box: 1 "
            "biases: [1, 1] }",
            [(0, 8, 4, 4)],
        ),
        (
            "type: 'NdPooling' pooling_param { pool: MAX kernel_shape { dim: 3 dim: 2 dim: 2 } "
            "stride_shape { dim: 1 dim: 1 dim: 1 } }",
            [(2, 3, 4, 0, 8)],
        ),
    ],
    ids=lambda value: value.split("'")[1] if isinstance(value, str) else "",
)
def test_layers_of_forks_refuse_what_has_no_numbers(definition: str, shapes: list[Shape]) -> None:
    with pytest.raises(CaffeError, match="no numbers in it"):
        make_layer(definition, *shapes)


def test_a_net_takes_no_images_but_none_without_pixels() -> None:
    net = make_net(
        input_layer(data=(2, 3, 8, 8))
        + layer("norm", "LRN", "data", "norm")
        + layer("pool", "Pooling", "norm", "pool", "pooling_param { kernel_size: 2 stride: 2 }")
    )
    assert net({"data": torch.zeros(0, 3, 8, 8)})["pool"].shape == (0, 3, 4, 4)
    with pytest.raises(CaffeError, match=r"layer 'norm': bottom: bottom 0 has no numbers in it"):
        net({"data": torch.zeros(2, 3, 0, 8)})


def test_a_net_is_given_no_more_than_a_blob_can_hold() -> None:
    net = make_net(
        input_layer(data=(1, 3))
        + layer("tile", "Tile", "data", "tile", "tile_param { tiles: 9999 }")
    )
    with pytest.raises(CaffeError, match=r"layer 'tile': a blob would be of 99999x29997 numbers"):
        net({"data": torch.zeros(99999, 3)})


def test_an_axis_too_many_is_seen_by_what_takes_up_to_four() -> None:
    regions = [(7, 5, 1, 1, 2), (7, 1), (7, 1), (7, 8)]
    definition = "type: 'BoxAnnotatorOHEM' box_annotator_ohem_param { roi_per_img: 2 }"
    with pytest.raises(CaffeError, match="the regions are 7 x 5 x 1 x 1 x 2"):
        make_layer(definition, *regions, tops=2)


def test_a_single_value_is_transposed() -> None:
    (value,) = run(make_layer("type: 'Transpose'", ()), torch.tensor(3.0))
    assert value.item() == 3
