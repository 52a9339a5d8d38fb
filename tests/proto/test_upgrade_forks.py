"""Layers of forks: what they are in Caffe's terms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.layers import Context
from caffe_dns.net import Net
from caffe_dns.net.definition import with_state
from caffe_dns.proto.caffe_pb2 import TEST, LayerParameter, NetParameter
from caffe_dns.proto.forks import renumber_layers
from caffe_dns.proto.text import parse_text, to_text
from caffe_dns.proto.upgrade import upgrade_net
from caffe_dns.proto.wire import LENGTH, VARINT, tag, varint
from caffe_dns.weights import load_weights
from tests.nets import input_layer, layer

FILLERS = "weight_filler { type: 'xavier' } bias_filler { value: 1 }"
OVER_TIME = "num_output: 4 kernel_size: 5 kernel_depth: 3 pad: 2 temporal_pad: 1 stride: 2"
BY_SHAPES = (
    "num_output: 4 kernel_shape { dim: 3 dim: 5 dim: 5 } pad_shape { dim: 1 dim: 2 dim: 2 } "
    "stride_shape { dim: 1 dim: 2 dim: 2 }"
)
#: How C3D 1.0, C3D 1.1 and video-caffe write the same convolution.
SAME = [
    f"layers {{ name: 'c' type: CONVOLUTION3D bottom: 'x' top: 'y' "
    f"convolution_param {{ {OVER_TIME} {FILLERS} }} }}",
    layer("c", "Convolution3D", "x", "y", f"convolution3d_param {{ {OVER_TIME} {FILLERS} }}"),
    layer("c", "NdConvolution", "x", "y", f"convolution_param {{ {BY_SHAPES} {FILLERS} }}"),
]


@pytest.mark.parametrize("text", SAME)
def test_same_convolution(text: str) -> None:
    net = upgrade_net(parse_text(text, NetParameter).message, "net.prototxt")
    expected = LayerParameter(name="c", type="Convolution", bottom=["x"], top=["y"])
    settings = expected.convolution_param
    settings.num_output = 4
    settings.kernel_size[:], settings.pad[:], settings.stride[:] = [3, 5, 5], [1, 2, 2], [1, 2, 2]
    settings.weight_filler.type, settings.bias_filler.value = "xavier", 1
    assert list(net.layer) == [expected]


def test_video_data_of_tsn() -> None:
    for field, type in (("num_segments: 3", "VideoSegments"), ("new_length: 3", "VideoData")):
        text = layer("d", "VideoData", "", "d l", f"video_data_param {{ {field} }}")
        net = upgrade_net(parse_text(text, NetParameter).message, "net.prototxt")
        assert net.layer[0].type == type


def test_normalize_of_happynear() -> None:
    for tops, field, type in (
        ("y", "normalize_param {}", "NormalizeChannels"),
        ("y", 'softmax_param { normalize_type: "L2" }', "NormalizeChannels"),
        ("y z", "", "NormalizeChannels"),
        ("y", "", "Normalize"),
    ):
        text = layer("n", "Normalize", "x", tops, field)
        net = upgrade_net(parse_text(text, NetParameter).message, "net.prototxt")
        assert net.layer[0].type == type


def test_inner_products_of_happynear() -> None:
    for field, type in (("normalize: true", "NormalizedInnerProduct"), ("", "InnerProduct")):
        text = layer("i", "InnerProduct", "x", "y", f"inner_product_param {{ {field} }}")
        net = upgrade_net(parse_text(text, NetParameter).message, "net.prototxt")
        assert net.layer[0].type == type


def test_relu6_of_synopsys() -> None:
    for field, type in (("relu6: true negative_slope: 0.25", "ReLU6"), ("relu6: false", "ReLU")):
        text = layer("r", "ReLU", "x", "y", f"relu_param {{ {field} }}")
        (read,) = upgrade_net(parse_text(text, NetParameter).message, "net.prototxt").layer
        assert read.type == type
        if type == "ReLU6":
            assert read.relu6_param.negative_slope == 0.25 and not read.HasField("relu_param")


def test_pixels_shuffled_by_synopsys() -> None:
    text = layer("r", "Reshape", "x", "y", "reshape_param { pixelshuffler: 2 }")
    text += layer("u", "UpsampleDarknet", "y", "z", "upsample_darknet_param { stride: 3 }")
    shuffled, upsampled = upgrade_net(parse_text(text, NetParameter).message, "net.prototxt").layer
    assert (shuffled.type, upsampled.type) == ("DepthToSpace", "Upsample")
    assert shuffled.depth_to_space_param.block_size == 2
    assert shuffled.depth_to_space_param.data_format == "CRD"
    assert upsampled.upsample_param.scale == 3


@pytest.mark.parametrize(
    ("type", "field", "read"),
    [
        ("BatchNorm", "batch_norm_param { add_eps_before_sqrt: false }", "DarknetBatchNorm"),
        ("BatchNorm", "batch_norm_param { add_eps_before_sqrt: true }", "BatchNorm"),
        ("DetectionOutput", "detection_output_param { no_permute: true }", "DetectionOutputOfMaps"),
        ("DetectionOutput", "detection_output_param { no_permute: false }", "DetectionOutput"),
    ],
)
def test_kinds_of_synopsys(type: str, field: str, read: str) -> None:
    text = layer("l", type, "x", "y", field)
    assert upgrade_net(parse_text(text, NetParameter).message, "net.prototxt").layer[0].type == read


def test_holes_of_the_first_deeplab() -> None:
    text = (
        "layers { name: 'c' type: CONVOLUTION bottom: 'x' top: 'y' "
        "convolution_param { num_output: 2 kernel_size: 3 hole: 4 %s } }"
    )
    (read,) = upgrade_net(parse_text(text % "", NetParameter).message, "net.prototxt").layer
    assert list(read.convolution_param.dilation) == [4]
    assert not read.convolution_param.HasField("hole")
    with pytest.raises(CaffeError, match="give either hole or dilation, not both"):
        upgrade_net(parse_text(text % "dilation: 2", NetParameter).message, "net.prototxt")
    settings = "convolution_param { num_output: 4 kernel_size: 1 hole: 2 }"
    message = refused(layer("c", "Deconvolution", "x", "y", settings))
    assert "hole: is for layers of type Convolution only" in message


def test_types_that_are_read_as_others_are_not_unknown() -> None:
    text = "layer { name: 'u' type: 'UpsampleDarknet' } layer { name: 'a' type: 'MAE' typo: 1 }"
    with pytest.raises(CaffeError, match=r"unknown field 'typo'.*; also unknown: layer type 'MAE'"):
        parse_text(text, NetParameter)


def build(text: str) -> Net:
    """The net of a definition of videos `x`, as it is read from a file."""
    param = parse_text(input_layer(x=(1, 2, 4, 6, 6)) + text, NetParameter).message
    return Net(with_state(upgrade_net(param, "net.prototxt"), TEST), Context(surgery=False))


def refused(text: str) -> str:
    with pytest.raises(CaffeError) as caught:
        build(text)
    return str(caught.value)


def test_what_is_left_out() -> None:
    text = "convolution_param { num_output: 4 %s }"
    for given in ("kernel_size: 3", "kernel_depth: 3"):
        message = refused(layer("c", "Convolution3D", "x", "y", text % given))
        assert "kernel_size: must be at least 1" in message
    wrong = layer("c", "NdConvolution", "x", "y", text % "kernel_shape { dim: -1 }")
    what = "kernel_shape: has [-1]; 0 to 2147483647 would be right"
    assert f"net.prototxt: layer 'c': convolution_param.{what}" in refused(wrong)
    message = refused(layer("c", "NdConvolution", "x", "y", text % ""))
    assert "kernel_size: given 0 times" in message
    message = refused(layer("c", "Convolution", "x", "y", text % "kernel_depth: 3"))
    assert "kernel_depth: is for layers of type Convolution3D" in message
    shape = text % "kernel_size: 1 pad_shape { dim: 1 }"
    message = refused(layer("c", "Deconvolution", "x", "y", shape))
    assert "pad_shape: is for layers of type NdConvolution only" in message


def field(number: int, content: bytes) -> bytes:
    return tag(number, LENGTH) + varint(len(content)) + content


def old_blob(*extents: int) -> tuple[bytes, np.ndarray]:
    """A blob as C3D 1.0 writes it: five extents as 1 to 5, values as 6."""
    values = np.arange(np.prod(extents), dtype="<f4")
    numbers = b"".join(tag(at, VARINT) + varint(extent) for at, extent in enumerate(extents, 1))
    return numbers + field(6, values.tobytes()), values


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_model_of_c3d(version: str, tmp_path: Path) -> None:
    weight, weights = old_blob(4, 2, 3, 5, 5)
    bias, biases = old_blob(1, 1, 1, 1, 4)
    if version == "1.0":
        content = field(4, b"c") + tag(5, VARINT) + varint(30) + field(6, weight) + field(6, bias)
        raw = field(2, content)
        assert renumber_layers(renumber_layers(raw)) == renumber_layers(raw)
    else:
        param = NetParameter()
        stored = param.layer.add(name="c", type="Convolution3D")
        stored.blobs.add(data=weights).shape.dim.extend([4, 2, 3, 5, 5])
        stored.blobs.add(data=biases).shape.dim.extend([1, 1, 1, 1, 4])
        raw = param.SerializeToString()
    (tmp_path / "c3d.caffemodel").write_bytes(raw)
    net = build(SAME[1])
    load_weights(net, str(tmp_path / "c3d.caffemodel"))
    for found, expected in zip(net.params["c"], (weights, biases), strict=True):
        np.testing.assert_array_equal(found.detach().flatten(), expected)


def test_fillers_of_a_batch_norm_are_those_of_the_scale_behind(
    capfd: pytest.CaptureFixture[str],
) -> None:
    text = """
    layer { name: "a" type: "BatchNorm" bottom: "x" top: "x"
      batch_norm_param { filler { value: 0 } bias_filler { value: 2 } } }
    layer { name: "b" type: "Scale" bottom: "x" top: "x" scale_param { bias_term: true } }
    layer { name: "c" type: "BatchNorm" bottom: "x" top: "y"
      batch_norm_param { filler { value: 3 } } }
    layer { name: "d" type: "ReLU" bottom: "y" top: "y" }
    layer { name: "e" type: "Scale" bottom: "y" top: "y" }
    layer { name: "f" type: "BatchNorm" bottom: "y" top: "z"
      batch_norm_param { bias_filler { value: 4 } } }
    layer { name: "g" type: "Scale" bottom: "z" top: "z" }
    """
    layers = upgrade_net(parse_text(text, NetParameter).message, "file").layer
    assert not layers[0].batch_norm_param.ListFields()
    assert to_text(layers[1].scale_param) == (
        "filler {\n  value: 0\n}\nbias_term: true\nbias_filler {\n  value: 2\n}\n"
    )
    assert layers[2].batch_norm_param.filler.value == 3  # which BatchNorm refuses
    assert layers[5].batch_norm_param.bias_filler.value == 4  # NVCaffe's
    assert not layers[4].scale_param.ListFields() and not layers[6].scale_param.ListFields()
    assert capfd.readouterr().err == ""
