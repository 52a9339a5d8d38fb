"""Upgrades against what Caffe's own tools made of the recorded files, and what they logged."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.proto.blobs import array_to_blob, blob_to_array
from caffe_dns.proto.caffe_pb2 import (
    LayerParameter,
    NetParameter,
    SolverParameter,
    V1LayerParameter,
)
from caffe_dns.proto.text import parse_text, to_text, write_binary
from caffe_dns.proto.upgrade import (
    net_needs_upgrade,
    read_net,
    read_solver,
    read_weights,
    upgrade_net,
    upgrade_net_as_needed,
    upgrade_solver,
)
from tests.oracle import GOLDEN


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """Severity and message of every line that is logged."""
    found: list[str] = []
    log.set_sink(lambda line: found.append(line[0] + re.sub(r"^.*?\]", "", line)))
    yield found
    log.set_sink(None)


def net(text: str) -> NetParameter:
    return parse_text(text, NetParameter).message


def upgraded(text: str) -> NetParameter:
    return upgrade_net(net(text), "net.prototxt")


def assert_upgrades(old: str, new: str) -> None:
    assert upgraded(old) == net(new)


@pytest.mark.parametrize("name", ["v0", "v1"])
def test_recorded_nets(name: str, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    parsed = read_net(f"legacy/{name}.prototxt")
    assert to_text(parsed.message) == Path(f"legacy/{name}_upgraded.prototxt").read_text()
    recorded = Path(f"logs/upgrade_{name}.log").read_text().splitlines()
    # The last line is the tool's, about the file it wrote.
    assert lines == [line[0] + re.sub(r"^.*?\]", "", line) for line in recorded[:-1]]


def test_recorded_solver(lines: list[str]) -> None:
    path = GOLDEN / "legacy" / "solver_enum.prototxt"
    expected = (GOLDEN / "legacy" / "solver_enum_upgraded.prototxt").read_text()
    solver = parse_text(path.read_text(), SolverParameter).message
    assert to_text(upgrade_solver(solver, "s.prototxt")) == expected
    assert [line[0] for line in lines] == ["I", "I", "W"]
    assert lines[0] == (
        "I Attempting to upgrade input file specified using deprecated "
        "'solver_type' field (enum)': s.prototxt"
    )


def test_nets_of_today_stay_as_they_are(lines: list[str]) -> None:
    path = GOLDEN / "runs" / "siamese_shared" / "train_val.prototxt"
    assert read_net(path).message == net(path.read_text())
    assert lines == []


def test_positions_follow_the_upgrade(lines: list[str]) -> None:
    v0, v1 = (read_net(GOLDEN / "legacy" / f"{name}.prototxt") for name in ("v0", "v1"))
    # Line 3 of v0 is its padding layer, which is gone.
    assert [v0.positions.layer_line(at) for at in range(9)] == [None, *range(4, 11), None]
    assert [v1.positions.layer_line(at) for at in range(8)] == [None, *range(3, 9), None]
    assert v1.positions.field_line(1, "convolution_param.stride") == 3


# V0 -----------------------------------------------------------------------------------------------

V0_SETTINGS = {
    'type: "conv" num_output: 2 biasterm: false group: 2 kernelsize: 3 stride: 2 pad: 1': (
        'type: "Convolution" convolution_param '
        "{ num_output: 2 bias_term: false group: 2 kernel_size: 3 stride: 2 pad: 1 }"
    ),
    'type: "innerproduct" num_output: 2 biasterm: true weight_filler { std: 2 }': (
        'type: "InnerProduct" inner_product_param '
        "{ num_output: 2 bias_term: true weight_filler { std: 2 } }"
    ),
    'type: "pool" pool: STOCHASTIC kernelsize: 3 stride: 2 pad: 1': (
        'type: "Pooling" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 2 pad: 1 }'
    ),
    'type: "dropout" dropout_ratio: 0.3': 'type: "Dropout" dropout_param { dropout_ratio: 0.3 }',
    'type: "lrn" local_size: 3 alpha: 1 beta: 2 k: 3': (
        'type: "LRN" lrn_param { local_size: 3 alpha: 1 beta: 2 k: 3 }'
    ),
    'type: "data" source: "db" batchsize: 5 rand_skip: 2 scale: 0.5 meanfile: "m" cropsize: 9 '
    "mirror: true": (
        'type: "Data" data_param { source: "db" batch_size: 5 rand_skip: 2 } '
        'transform_param { scale: 0.5 mean_file: "m" crop_size: 9 mirror: true }'
    ),
    'type: "hdf5_data" source: "list" batchsize: 5': (
        'type: "HDF5Data" hdf5_data_param { source: "list" batch_size: 5 }'
    ),
    'type: "images" source: "l" batchsize: 5 rand_skip: 1 shuffle_images: true new_height: 3 '
    "new_width: 4": (
        'type: "ImageData" image_data_param { source: "l" batch_size: 5 rand_skip: 1 '
        "shuffle: true new_height: 3 new_width: 4 }"
    ),
    'type: "window_data" source: "w" batchsize: 5 det_fg_threshold: 0.1 det_bg_threshold: 0.2 '
    'det_fg_fraction: 0.3 det_context_pad: 4 det_crop_mode: "square"': (
        'type: "WindowData" window_data_param { source: "w" batch_size: 5 fg_threshold: 0.1 '
        'bg_threshold: 0.2 fg_fraction: 0.3 context_pad: 4 crop_mode: "square" }'
    ),
    'type: "infogain_loss" source: "h"': 'type: "InfogainLoss" infogain_loss_param { source: "h" }',
    'type: "concat" concat_dim: 2': 'type: "Concat" concat_param { concat_dim: 2 }',
    'type: "hdf5_output" hdf5_output_param { file_name: "f" }': (
        'type: "HDF5Output" hdf5_output_param { file_name: "f" }'
    ),
    'type: "softmax_loss" blobs_lr: 1 weight_decay: 0 weight_decay: 2': (
        'type: "SoftmaxWithLoss" param { lr_mult: 1 decay_mult: 0 } param { decay_mult: 2 }'
    ),
}


@pytest.mark.parametrize("old", V0_SETTINGS)
def test_every_v0_setting_finds_its_place(old: str, lines: list[str]) -> None:
    assert_upgrades(
        f'name: "n" force_backward: true layers {{ layer {{ name: "l" {old} }} top: "t" }}',
        f'name: "n" force_backward: true layer {{ name: "l" top: "t" {V0_SETTINGS[old]} }}',
    )
    assert not any(line.startswith("E") for line in lines)


def test_v0_settings_of_the_wrong_layer_are_reported(lines: list[str]) -> None:
    old = net('layers { layer { name: "r" type: "relu" num_output: 3 shuffle_images: true } }')
    assert not upgrade_net_as_needed(old, "net.prototxt")[1]
    assert [line for line in lines if line.startswith("E")] == [
        "E Unknown parameter num_output for layer type relu",
        "E Unknown parameter shuffle for layer type relu",
        "E Warning: had one or more problems upgrading V0NetParameter to NetParameter "
        "(see above); continuing anyway.",
    ]


PADDING = 'layers { layer { name: "p" type: "padding" pad: 2 } bottom: "x" top: "padded" } '


def test_v0_padding_moves_into_pooling_too(lines: list[str]) -> None:
    assert_upgrades(
        'input: "x" ' + PADDING + 'layers { layer { type: "pool" } bottom: "padded" top: "y" } '
        'layers { layer { type: "relu" } bottom: "y" top: "y" }',
        'layer { type: "Pooling" bottom: "x" top: "y" pooling_param { pad: 2 } } '
        'layer { type: "ReLU" bottom: "y" top: "y" }',
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'input: "x" '
            + PADDING
            + 'layers { layer { name: "r" type: "relu" } bottom: "padded" }',
            "layer 'r': a padding layer can feed conv and pool layers only, not 'relu'",
        ),
        (
            'input: "x" '
            + PADDING
            + 'layers { layer { name: "c" type: "conv" } bottom: "x" bottom: "padded" }',
            "layer 'c': a layer behind a padding layer takes a single blob",
        ),
        (
            'input: "x" layers { layer { name: "p" type: "padding" } top: "y" } '
            'layers { layer { name: "c" type: "conv" } bottom: "y" }',
            "layer 'c': the padding layer 'p' takes and makes a single blob",
        ),
        (
            'layers { layer { name: "c" type: "conv" } bottom: "nowhere" }',
            "layer 'c': unknown bottom blob 'nowhere'",
        ),
        (
            'layers { layer { name: "c" type: "Convolution" } }',
            "layer 'c': unknown V0 layer type 'Convolution'",
        ),
    ],
)
def test_v0_nets_that_cannot_be_upgraded(text: str, expected: str, lines: list[str]) -> None:
    with pytest.raises(CaffeError) as caught:
        upgraded(text)
    assert str(caught.value) == f"net.prototxt: {expected}"


# V1 -----------------------------------------------------------------------------------------------


def test_every_v1_type_and_setting_has_its_place(lines: list[str]) -> None:
    settings = [
        field.name
        for field in V1LayerParameter.DESCRIPTOR.fields
        if isinstance(getattr(V1LayerParameter(), field.name), Message) and field.name != "layer"
    ]
    assert len(settings) > 25
    for name in settings:
        old = V1LayerParameter()
        getattr(old, name).SetInParent()
        new = LayerParameter()
        getattr(new, name).SetInParent()
        assert upgrade_net(NetParameter(layers=[old]), "f").layer[0] == new
    for value in V1LayerParameter.LayerType.values():
        layer = upgrade_net(NetParameter(layers=[{"type": value}]), "f").layer[0]
        # The enum's names are the types' without case and underscores, but for some.
        name = V1LayerParameter.LayerType.Name(value).replace("_", "")
        others = {
            "NONE": "",
            "SOFTMAXLOSS": "SOFTMAXWITHLOSS",
            "CONVOLUTION3D": "CONVOLUTION",
            "DECONVOLUTION3D": "DECONVOLUTION",
        }
        expected = others.get(name, name)
        assert layer.type.upper() == expected


def test_v1_parameters_and_rules(lines: list[str]) -> None:
    assert_upgrades(
        'name: "n" state { level: 2 } layers { name: "l" type: LRN bottom: "a" bottom: "b" '
        'top: "c" param: "w" blob_share_mode: STRICT blob_share_mode: PERMISSIVE blobs_lr: 2 '
        "weight_decay: 1 weight_decay: 0 weight_decay: 3 loss_weight: 0.5 "
        "include { phase: TEST } exclude { phase: TRAIN } }",
        'name: "n" state { level: 2 } layer { name: "l" type: "LRN" bottom: "a" bottom: "b" '
        'top: "c" param { name: "w" share_mode: STRICT lr_mult: 2 decay_mult: 1 } '
        "param { share_mode: PERMISSIVE decay_mult: 0 } param { decay_mult: 3 } "
        "loss_weight: 0.5 include { phase: TEST } exclude { phase: TRAIN } }",
    )


def test_transformation_settings_leave_the_data_layers(lines: list[str]) -> None:
    assert_upgrades(
        'layers { type: DATA data_param { source: "s" scale: 0.5 mirror: true } } '
        'layers { type: IMAGE_DATA image_data_param { crop_size: 3 mean_file: "m" } } '
        "layers { type: WINDOW_DATA } layers { type: RELU }",
        'layer { type: "Data" data_param { source: "s" } '
        "transform_param { scale: 0.5 mirror: true } } "
        'layer { type: "ImageData" image_data_param { } '
        'transform_param { crop_size: 3 mean_file: "m" } } '
        'layer { type: "WindowData" window_data_param { } transform_param { } } '
        'layer { type: "ReLU" }',
    )
    assert lines[:3] == [
        "I Attempting to upgrade input file specified using deprecated "
        "transformation parameters: net.prototxt",
        "I Successfully upgraded file specified using deprecated data transformation parameters.",
        "W Note that future Caffe releases will only support "
        "transform_param messages for transformation fields.",
    ]


def test_layer_and_layers_do_not_mix(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text('layer { type: "ReLU" }\nlayers { type: RELU }\n')
    with pytest.raises(CaffeError) as caught:
        read_net(path)
    assert str(caught.value) == (
        f"{path}:2: layers: the net has both 'layer' and 'layers' entries; "
        'write all of them as layer { type: "Type" ... }'
    )


@pytest.mark.parametrize("generation", ["V0", "V1"])
def test_old_models_keep_their_arrays(generation: str, tmp_path: Path, lines: list[str]) -> None:
    array = np.arange(6, dtype=np.float32).reshape(1, 1, 2, 3)
    legacy = array_to_blob(array)
    legacy.ClearField("shape")
    legacy.num, legacy.channels, legacy.height, legacy.width = array.shape
    if generation == "V0":
        layer = V1LayerParameter(layer={"name": "ip", "type": "innerproduct", "blobs": [legacy]})
    else:
        layer = V1LayerParameter(name="ip", type="INNER_PRODUCT", blobs=[legacy])
    model = NetParameter(name="old", input=["data"], layers=[layer])
    write_binary(tmp_path / "old.caffemodel", model)

    weights = read_weights(tmp_path / "old.caffemodel")
    assert [layer.name for layer in weights.layer] == ["ip"]
    assert not weights.input
    np.testing.assert_array_equal(blob_to_array(weights.layer[0].blobs[0]), array)


# Inputs and BatchNorm -----------------------------------------------------------------------------


def test_inputs_become_a_layer_in_front(lines: list[str]) -> None:
    assert_upgrades(
        'input: "a" input: "b" input_shape { dim: 2 dim: 3 } input_shape { } '
        'layer { name: "l" type: "Concat" bottom: "a" }',
        'layer { name: "input" type: "Input" top: "a" top: "b" '
        "input_param { shape { dim: 2 dim: 3 } shape { } } } "
        'layer { name: "l" type: "Concat" bottom: "a" }',
    )
    assert_upgrades(
        'input: "a" input: "b" ' + " ".join(f"input_dim: {dim}" for dim in range(1, 9)),
        'layer { name: "input" type: "Input" top: "a" top: "b" input_param '
        "{ shape { dim: [1, 2, 3, 4] } shape { dim: [5, 6, 7, 8] } } }",
    )
    assert_upgrades('input: "a" layer { name: "l" }', 'layer { name: "l" }')


@pytest.mark.parametrize(
    "dims", ["input_dim: [1, 2, 3, 4, 5]", "input_shape { dim: 2 }", 'layer { bottom: "b" }']
)
def test_an_input_without_a_shape(dims: str, tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(f'name: "n"\ninput: "a" input: "b" {dims}')
    with pytest.raises(CaffeError) as caught:
        read_net(path)
    assert str(caught.value) == (
        f"{path}:2: input: input 'b' has no shape: "
        "each input needs one input_shape or four input_dim"
    )


def test_batch_norm_statistics_do_not_learn(lines: list[str]) -> None:
    old = 'layer { type: "BatchNorm" param { lr_mult: 1 } param { name: "x" } param { } }'
    assert net_needs_upgrade(net(old))
    fixed = "lr_mult: 0 decay_mult: 0"
    assert_upgrades(
        old,
        f'layer {{ type: "BatchNorm" param {{ {fixed} }} param {{ name: "x" {fixed} }} '
        f"param {{ {fixed} }} }}",
    )
    assert lines == [
        "I Attempting to upgrade batch norm layers using deprecated params: net.prototxt",
        "I Successfully upgraded batch norm layers using deprecated params.",
    ]
    two = 'layer { type: "BatchNorm" param { lr_mult: 1 } param { } }'
    assert not net_needs_upgrade(net(two))
    assert_upgrades(two, two)


# Solvers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_every_solver_type(name: str, lines: list[str]) -> None:
    solver = parse_text(f"solver_type: {name.upper()}", SolverParameter).message
    assert upgrade_solver(solver, "s") == SolverParameter(type=name)


def test_both_solver_types(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "solver.prototxt"
    path.write_text('type: "SGD"\nsolver_type: SGD\n')
    with pytest.raises(CaffeError) as caught:
        read_solver(path)
    assert str(caught.value) == f"{path}:2: solver_type: type and solver_type are both given"


def test_snapshot_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("snapshots").mkdir()
    for text, prefix in {
        "base_lr: 1": "./solver.v2",
        'snapshot_prefix: "snapshots"': "snapshots/solver.v2",
        'snapshot_prefix: "snapshots/"': "snapshots/solver.v2",
        'snapshot_prefix: "snapshots/lenet"': "snapshots/lenet",
        'snapshot_prefix: "missing/lenet"': "missing/lenet",
    }.items():
        Path("solver.v2.prototxt").write_text(text)
        assert read_solver("./solver.v2.prototxt").message.snapshot_prefix == prefix
    assert lines == [
        "I snapshot_prefix was not specified and is set to ./solver.v2",
        "I snapshot_prefix was a directory and is replaced to snapshots/solver.v2",
        "I snapshot_prefix was a directory and is replaced to snapshots/solver.v2",
    ]
