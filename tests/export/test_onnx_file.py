"""ONNX files against the net they were made of, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.export.deploy import deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.onnx_file import to_onnx
from caffe_dns.export.onnx_graph import converters
from caffe_dns.layers import layer_types
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.proto.upgrade import read_net
from tests.export.build import CONVOLUTIONAL, random_inputs, small_model
from tests.oracle import GOLDEN

pytest.importorskip("onnx", reason="needs the package onnx")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")


def run_onnx(raw: bytes, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    return dict(zip(outputs, found, strict=True))


def assert_same(raw: bytes, net: Net, inputs: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        expected = net(inputs)
    actual = run_onnx(raw, inputs)
    assert list(actual) == net.outputs
    for blob, value in actual.items():
        assert value.shape == tuple(expected[blob].shape)
        np.testing.assert_allclose(value, expected[blob].numpy(), rtol=1e-4, atol=1e-5)


def body(layers: str, shape: str = "dim: 2 dim: 3 dim: 7 dim: 6") -> str:
    settings = f"input_param {{ shape {{ {shape} }} }}"
    return f'layer {{ name: "data" type: "Input" top: "data" {settings} }}\n{layers}'


def one(type: str, settings: str = "", name: str = "layer") -> str:
    return f'layer {{ name: "{name}" type: "{type}" bottom: "data" top: "{name}" {settings} }}'


def test_lenet(tmp_path: Path) -> None:
    run = GOLDEN / "runs" / "sgd_inv"
    parsed = read_net(run / "train_val.prototxt")
    described = deploy(parsed.message, shapes=[(1, 28, 28)])
    model = UnmaskedModel.load(described, str(run / "snap_iter_20.caffemodel"))
    net = model.to_net()
    assert_same(to_onnx(model), net, random_inputs(net, batch=3))


def test_pooling_normalisation_and_groups(tmp_path: Path) -> None:
    model, net = small_model(CONVOLUTIONAL, tmp_path)
    raw = to_onnx(model)
    assert_same(raw, net, random_inputs(net))
    assert_same(raw, net, random_inputs(net, batch=5))


@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
@pytest.mark.parametrize(
    "window",
    [
        "kernel_size: 3 stride: 2",
        "kernel_size: 2 stride: 3",
        "kernel_size: 2 stride: 4",
        "kernel_size: 3 stride: 2 pad: 1",
        "kernel_size: 3 stride: 2 pad: 2",
        "kernel_h: 3 kernel_w: 2 stride_h: 3 stride_w: 2 pad_h: 2 pad_w: 0",
        "kernel_size: 3 stride: 2 round_mode: FLOOR",
        "global_pooling: true",
    ],
)
def test_pooling(method: str, window: str, tmp_path: Path) -> None:
    if method == "STOCHASTIC" and "pad" in window:
        pytest.skip("STOCHASTIC takes no padding")
    text = body(one("Pooling", f"pooling_param {{ pool: {method} {window} }}"))
    model, net = small_model(text, tmp_path)
    assert_same(to_onnx(model), net, random_inputs(net))


@pytest.mark.parametrize("height", [1, 2, 3])
@pytest.mark.parametrize("method", ["MAX", "AVE", "STOCHASTIC"])
def test_pyramids(method: str, height: int, tmp_path: Path) -> None:
    image = "dim: 8 dim: 4" if method == "STOCHASTIC" else "dim: 7 dim: 6"  # which pads
    text = body(
        one("SPP", f"spp_param {{ pool: {method} pyramid_height: {height} }}"),
        f"dim: 2 dim: 3 {image}",
    )
    model, net = small_model(text, tmp_path)
    assert_same(to_onnx(model), net, random_inputs(net))


LAYERS = {
    "deconvolution": one(
        "Deconvolution",
        "convolution_param { num_output: 6 kernel_size: 3 stride: 2 pad: 1 group: 3 }",
    ),
    "kernel_beyond_bottom": one(
        "Convolution",
        "convolution_param { num_output: 6 kernel_size: 9 stride: 5 pad: 1 }",
    ),
    "inner_product_axis_2": one("InnerProduct", "inner_product_param { num_output: 5 axis: 2 }"),
    "inner_product_axis_0": one("InnerProduct", "inner_product_param { num_output: 5 axis: 0 }"),
    "inner_product_transpose": one(
        "InnerProduct", "inner_product_param { num_output: 5 transpose: true bias_term: false }"
    ),
    "lrn_within": one(
        "LRN", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 alpha: 2 beta: 0.5 }"
    ),
    "mvn": one("MVN"),
    "mvn_across": one("MVN", "mvn_param { across_channels: true }"),
    "mvn_mean_only": one("MVN", "mvn_param { normalize_variance: false }"),
    "scale_axes": one("Scale", "scale_param { axis: 1 num_axes: 2 bias_term: true }"),
    "scale_two_bottoms": one("Reduction", "reduction_param { axis: 2 }", "sums")
    + 'layer { name: "s" type: "Scale" bottom: "data" bottom: "sums" top: "s"'
    + " scale_param { axis: 0 bias_term: true } }",
    "bias": one("Bias", "bias_param { axis: 2 num_axes: 1 }"),
    "relu": one("ReLU"),
    "prelu": one("PReLU"),
    "sigmoid": one("Sigmoid"),
    "tanh": one("TanH"),
    "elu": one("ELU", "elu_param { alpha: 0.7 }"),
    "swish": one("Swish", "swish_param { beta: 1.5 }"),
    "bnll": one("BNLL"),
    "abs": one("AbsVal"),
    "power": one("Power", "power_param { power: 2 scale: 0.5 shift: 1 }"),
    "power_1": one("Power", "power_param { scale: -2 shift: 0.5 }"),
    "exp": one("Exp", "exp_param { base: 2 scale: 0.5 shift: 1 }"),
    "log": one("AbsVal", name="abs")
    + 'layer { name: "log" type: "Log" bottom: "abs" top: "log" log_param { base: 2 shift: 1 } }',
    "clip": one("Clip", "clip_param { min: -0.5 max: 0.25 }"),
    "threshold": one("Threshold", "threshold_param { threshold: 0.1 }"),
    "softmax_axis": one("Softmax", "softmax_param { axis: 2 }"),
    "slice": 'layer { name: "s" type: "Slice" bottom: "data" top: "a" top: "b"'
    " slice_param { axis: 2 slice_point: 3 } }",
    "slice_batch": 'layer { name: "s" type: "Slice" bottom: "data" top: "a" top: "b"'
    " slice_param { axis: 0 } }",
    "reshape": one("Reshape", "reshape_param { shape { dim: 0 dim: -1 dim: 2 } axis: 1 }"),
    "reshape_batch": one("Reshape", "reshape_param { shape { dim: 4 dim: -1 } }"),
    "flatten": one("Flatten", "flatten_param { axis: 1 end_axis: 2 }"),
    "crop": one("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }", "size")
    + 'layer { name: "c" type: "Crop" bottom: "data" bottom: "size" top: "c"'
    + " crop_param { offset: 2 offset: 1 } }",
    "tile": one("Tile", "tile_param { axis: 2 tiles: 3 }"),
    "argmax": one("ArgMax", "argmax_param { axis: 1 }"),
    "argmax_value": one("ArgMax", "argmax_param { axis: 2 out_max_val: true }"),
    "argmax_items": one("ArgMax"),
    "sum": one("Reduction", "reduction_param { axis: 1 coeff: 0.5 }"),
    "asum": one("Reduction", "reduction_param { operation: ASUM axis: 2 }"),
    "sumsq": one("Reduction", "reduction_param { operation: SUMSQ }"),
    "one_number": one("Reduction", "reduction_param { coeff: 2 }", "sum")
    + one("Power", "power_param { power: 2 shift: 1 }").replace('"data"', '"sum"'),
    "mean": one("Reduction", "reduction_param { operation: MEAN axis: 3 }"),
    "eltwise_sum": one("Sigmoid", name="a")
    + 'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "a" top: "e"'
    + " eltwise_param { coeff: 1 coeff: -2 } }",
    "eltwise_prod": one("Sigmoid", name="a")
    + 'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "a" bottom: "a" top: "e"'
    + " eltwise_param { operation: PROD } }",
    "eltwise_max": one("Sigmoid", name="a")
    + 'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "a" top: "e"'
    + " eltwise_param { operation: MAX } }",
    "parameter": 'layer { name: "p" type: "Parameter" top: "p"'
    " parameter_param { shape { dim: 2 dim: 3 dim: 7 dim: 6 } } }"
    'layer { name: "e" type: "Eltwise" bottom: "data" bottom: "p" top: "e" }',
    "several_outputs": one("Dropout", name="same") + one("ReLU", name="other"),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer(name: str, tmp_path: Path) -> None:
    model, net = small_model(body(LAYERS[name]), tmp_path, batch=2)
    assert_same(to_onnx(model), net, random_inputs(net))


def test_prelu_with_one_slope() -> None:
    text = body(one("PReLU", "prelu_param { channel_shared: true }"))
    described = deploy(parse_text(text, NetParameter).message)
    model = UnmaskedModel(described, [[], [np.array(0.3, np.float32)]])
    net = model.to_net()
    assert_same(to_onnx(model), net, random_inputs(net))


def test_embed(tmp_path: Path) -> None:
    text = body(one("Embed", "embed_param { input_dim: 5 num_output: 3 }"), shape="dim: 2 dim: 4")
    model, net = small_model(text, tmp_path)
    indices = {"data": torch.tensor([[0.0, 4, 2, 2], [1, 3, 0, 4]])}
    assert_same(to_onnx(model), net, indices)


def test_any_batch_only_where_the_net_takes_it(tmp_path: Path) -> None:
    import onnx

    def first_extent(layers: str) -> str:
        (tmp_path / "x").mkdir(exist_ok=True)
        raw = to_onnx(small_model(body(layers), tmp_path / "x", batch=2)[0])
        dimension = onnx.load_from_string(raw).graph.input[0].type.tensor_type.shape.dim[0]
        return dimension.dim_param or str(dimension.dim_value)

    assert first_extent(LAYERS["reshape"]) == "N"
    assert first_extent(LAYERS["reshape_batch"]) == "2"
    assert first_extent(LAYERS["slice_batch"]) == "2"


def test_names(tmp_path: Path) -> None:
    import onnx

    model, _ = small_model(CONVOLUTIONAL, tmp_path)
    graph = onnx.load_from_string(to_onnx(model)).graph
    assert [value.name for value in graph.input] == ["data"]
    assert [value.name for value in graph.output] == ["prob"]
    constants = {constant.name for constant in graph.initializer}
    assert {"conv1.weight", "conv1.bias", "ip.weight", "bn1.running_mean"} <= constants


def test_what_onnx_has_nothing_for(tmp_path: Path) -> None:
    model, _ = small_model(body(one("Im2col", "convolution_param { kernel_size: 2 }")), tmp_path)
    with pytest.raises(CaffeError, match="layer 'layer': a layer of type Im2col cannot be"):
        to_onnx(model)


def test_a_blob_without_a_name_is_none_of_onnx(tmp_path: Path) -> None:
    text = CONVOLUTIONAL.replace('top: "prob"', 'top: ""')
    model, _ = small_model(text, tmp_path)
    with pytest.raises(CaffeError, match=r"cannot be expressed in ONNX: .*'name'.* non-empty"):
        to_onnx(model)


def test_converters_are_for_layers_that_exist() -> None:
    assert all(type in layer_types for type in converters)


def test_the_net_is_the_one_that_was_saved(tmp_path: Path) -> None:
    model, net = small_model(CONVOLUTIONAL, tmp_path)
    again = load_net(tmp_path / "net.prototxt", "TEST", tmp_path / "net.caffemodel")
    inputs = random_inputs(net)
    np.testing.assert_array_equal(
        again(inputs)["prob"].detach().numpy(), model.to_net()(inputs)["prob"].detach().numpy()
    )
