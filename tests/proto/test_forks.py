from pathlib import Path

import pytest

from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.proto.forks import renumber_layers
from caffe_dns.proto.text import read_binary, read_text
from caffe_dns.proto.wire import LENGTH, VARINT, tag, varint
from tests.oracle import GOLDEN


def settings(number: int, content: bytes) -> bytes:
    """A message as field `number` of another."""
    return tag(number, LENGTH) + varint(len(content)) + content


def fork_layer(type: str, number: int, content: bytes) -> LayerParameter:
    """A layer that a fork wrote, with its settings as field `number`, read from a model."""
    written = LayerParameter(name="layer", type=type, bottom=["data"], top=["top"])
    written.blobs.add(data=[1, 2, 3]).shape.dim.append(3)
    layer = written.SerializeToString() + settings(number, content)
    plain = NetParameter(name="net")
    plain.layer.add(name="before", type="ELU").elu_param.alpha = 0.5
    raw = plain.SerializeToString() + settings(100, layer) + plain.SerializeToString()
    net = NetParameter.FromString(renumber_layers(raw))
    assert net.layer[0] == net.layer[2] == plain.layer[0]
    found: LayerParameter = net.layer[1]
    assert list(found.blobs[0].data) == [1, 2, 3]
    return found


@pytest.mark.parametrize("number", [8266711, 154, 150])
def test_roi_pooling(number: int) -> None:
    expected = LayerParameter().roi_pooling_param
    expected.pooled_h, expected.pooled_w, expected.spatial_scale = 7, 6, 0.0625
    layer = fork_layer("ROIPooling", number, expected.SerializeToString())
    assert layer.roi_pooling_param == expected


@pytest.mark.parametrize("number", [8266712, 148])
def test_smooth_l1_loss(number: int) -> None:
    expected = LayerParameter().smooth_l1_loss_param
    expected.sigma = 3
    layer = fork_layer("SmoothL1Loss", number, expected.SerializeToString())
    assert layer.smooth_l1_loss_param == expected
    assert not layer.HasField("clip_param")


@pytest.mark.parametrize("number", [10000, 152])
def test_box_annotator(number: int) -> None:
    expected = LayerParameter().box_annotator_ohem_param
    expected.roi_per_img = 128
    layer = fork_layer("BoxAnnotatorOHEM", number, expected.SerializeToString())
    assert layer.box_annotator_ohem_param == expected


@pytest.mark.parametrize("number", [10001, 153])
def test_psroi_pooling(number: int) -> None:
    expected = LayerParameter().psroi_pooling_param
    expected.spatial_scale, expected.output_dim, expected.group_size = 0.0625, 21, 7
    layer = fork_layer("PSROIPooling", number, expected.SerializeToString())
    assert layer.psroi_pooling_param == expected


@pytest.mark.parametrize("number", [152, 137])
def test_bn_of_pspnet(number: int) -> None:
    expected = LayerParameter().bn_param
    expected.slope_filler.value, expected.momentum, expected.frozen = 1, 0.95, True
    layer = fork_layer("BN", number, expected.SerializeToString())
    assert layer.bn_param == expected
    assert not layer.HasField("embed_param")


def test_bn_of_segnet() -> None:
    expected = LayerParameter().bn_param
    expected.scale_filler.value, expected.shift_filler.std = 1, 0.001
    expected.bn_mode = expected.INFERENCE
    content = (
        settings(1, expected.scale_filler.SerializeToString())
        + settings(2, expected.shift_filler.SerializeToString())
        + tag(3, VARINT)
        + varint(1)
    )
    assert fork_layer("BN", 45, content).bn_param == expected


def test_batch_norm_of_nvcaffe_and_of_intel() -> None:
    expected = LayerParameter().batch_norm_param
    expected.eps, expected.scale_bias = 0.25, True
    expected.scale_filler.value, expected.bias_filler.value = 2, 3
    fillers = [
        settings(number, filler.SerializeToString())
        for number, filler in ((5, expected.scale_filler), (6, expected.bias_filler))
    ]
    eps = expected.__class__(eps=0.25).SerializeToString()
    content = b"".join([eps, *fillers, tag(7, VARINT), varint(1)])
    assert fork_layer("BatchNorm", 139, content).batch_norm_param == expected

    # Intel's use_weight_bias and bias_term are booleans where NVCaffe has fillers.
    other = expected.__class__(eps=0.25)
    other.filler.value, other.bias_filler.value = 1, 3
    booleans = tag(5, VARINT) + varint(1) + tag(6, VARINT) + varint(1)
    fillers = [
        settings(number, filler.SerializeToString())
        for number, filler in ((7, other.filler), (8, other.bias_filler))
    ]
    found = fork_layer("BatchNorm", 139, b"".join([eps, booleans, *fillers])).batch_norm_param
    found.DiscardUnknownFields()
    assert found == other


def test_interp() -> None:
    expected = LayerParameter().interp_param
    expected.height, expected.width, expected.pad_beg = 60, 61, -1
    layer = fork_layer("Interp", 143, expected.SerializeToString())
    assert layer.interp_param == expected
    assert not layer.HasField("input_param")


@pytest.mark.parametrize("number", [137, 147, 150])
def test_upsample(number: int) -> None:
    expected = LayerParameter().upsample_param
    expected.scale, expected.upsample_h, expected.pad_out_w = 2, 45, True
    layer = fork_layer("Upsample", number, expected.SerializeToString())
    assert layer.upsample_param == expected
    assert not layer.HasField("embed_param")
    assert not layer.HasField("swish_param")


@pytest.mark.parametrize(
    ("type", "number", "field"),
    [
        ("ShuffleChannel", 164, "shuffle_channel_param"),
        ("Reorg", 149, "reorg_param"),
        ("Reorg", 159, "reorg_param"),
        ("ReLU6", 211, "relu6_param"),
        ("Insanity", 202, "insanity_param"),
        ("SeLu", 149, "selu_param"),
        ("SeLuDropout", 150, "selu_dropout_param"),
        ("ContinuationIndicator", 158, "continuation_indicator_param"),
        ("DetectionLoss", 149, "detection_loss_param"),
        ("DetectionAccuracy", 150, "detection_accuracy_param"),
        ("ProposalTarget", 152, "proposal_target_param"),
        ("RegionLoss", 209, "region_loss_param"),
        ("RegionLoss", 600, "region_loss_param"),
        ("EvalDetection", 301, "eval_detection_param"),
        ("Yolov3", 603, "yolov3_param"),
        ("DenseBlock", 147, "denseblock_param"),
        ("ConvLSTM", 150, "lstm_conv_param"),
        ("ROIWarping", 11870, "roi_warping_param"),
        ("MaskResize", 11890, "mask_resize_param"),
        ("LabelSpecificAdd", 241, "label_specific_add_param"),
        ("Proposal", 8266713, "proposal_param"),
        ("MarginInnerProduct", 147, "margin_inner_product_param"),
        ("LargeMarginInnerProduct", 202, "largemargin_inner_product_param"),
        ("CenterLoss", 147, "center_loss_param"),
        ("Lstm", 201, "lstm_param"),
        ("Lstm", 140, "lstm_param"),
        ("Reverse", 143, "reverse_param"),
        ("CtcLoss", 157, "ctc_loss_param"),
        ("LabelsequenceAccuracy", 159, "labelsequence_accuracy_param"),
        ("CTCGreedyDecoder", 158, "ctc_decoder_param"),
        ("DepthToSpace", 208, "depth_to_space_param"),
        ("InnerDistance", 213, "inner_distance_param"),
        ("GeneralContrastiveLoss", 215, "general_contrastive_loss_param"),
        ("UpsampleDarknet", 209, "upsample_darknet_param"),
    ],
)
def test_layers_of_small_nets(type: str, number: int, field: str) -> None:
    # One number, 3, as the first field; a float in that of some.
    floats = ("ReLU6", "Insanity", "SeLu", "SeLuDropout", "LabelSpecificAdd")
    is_float = type in (*floats, "GeneralContrastiveLoss")
    content = b"\x0d\x00\x00\x40\x40" if is_float else b"\x08\x03"
    (value,) = (v for _, v in getattr(fork_layer(type, number, content), field).ListFields())
    assert value == 3


def test_warp_ctc_loss() -> None:
    read = fork_layer("WarpCTCLoss", 159, tag(2, VARINT) + varint(3))
    assert read.ctc_loss_param.blank_index == 3 and not read.ctc_loss_param.alphabet_size


def test_padding_of_each_side() -> None:
    sides = {"pad_l": 1, "pad_r": 2, "pad_t": 3, "pad_b": 4}
    for type, number, first, field in (
        ("Convolution", 106, 26, "convolution_param"),
        ("Deconvolution", 106, 26, "convolution_param"),
        ("Pooling", 121, 16, "pooling_param"),
    ):
        content = b"".join(tag(first + i, VARINT) + varint(i + 1) for i in range(4))
        read = getattr(fork_layer(type, number, content + tag(4, VARINT) + varint(9)), field)
        assert {name: getattr(read, name) for name in sides} == sides
    assert read.pad == 9


def test_further_settings_of_synopsys_and_others() -> None:
    for type, number, field in (
        ("Pad", 224, "pad_param"),
        ("SpaceToBatchND", 236, "space_to_batch_nd_param"),
        ("BatchToSpaceND", 235, "batch_to_space_nd_param"),
    ):
        read = getattr(fork_layer(type, number, tag(1, VARINT) + varint(3)), field)
        ((_, values),) = read.ListFields()
        assert list(values) == [3]
    height = tag(2, VARINT) + varint(3)
    nearest = fork_layer("ResizeNearestNeighbor", 210, height).resize_nearest_neighbor_param
    bilinear = fork_layer("ResizeBilinear", 226, height).resize_bilinear_param
    assert nearest.output_height == bilinear.output_height == 3
    content = tag(32, VARINT) + varint(1) + tag(33, VARINT) + varint(7)
    read = fork_layer("DetectionOutput", 204, content).detection_output_param
    assert read.no_permute and read.nbottom == 7
    read = fork_layer("BatchNorm", 139, tag(4, VARINT) + varint(0)).batch_norm_param
    assert read.HasField("add_eps_before_sqrt")
    assert fork_layer("Reshape", 133, tag(4, VARINT) + varint(2)).reshape_param.pixelshuffler == 2
    content = tag(17, VARINT) + varint(1) + tag(18, VARINT) + varint(1)
    read = fork_layer("PriorBox", 203, content).prior_box_param
    assert read.tf and read.yx_order
    content = tag(4, VARINT) + varint(1)
    assert fork_layer("Accuracy", 102, content).accuracy_param.min_is_better
    read = fork_layer("Parameter", 145, settings(2, b""))
    assert read.parameter_param.HasField("blob_filler")
    read = fork_layer("SpatialTransformer", 1003, tag(3, VARINT) + varint(7))
    assert read.st_param.output_H == 7
    assert fork_layer("Squeeze", 241, tag(1, VARINT) + varint(3)).squeeze_param.axis == [3]
    assert fork_layer("ReLU", 123, tag(3, VARINT) + varint(1)).relu_param.relu6


@pytest.mark.parametrize("run", ["surgery_guo", "surgery_guo_iter_stop"])
@pytest.mark.parametrize("model", ["init", "snap_iter_40"])
def test_settings_of_the_official_surgery_layers_come_back(run: str, model: str) -> None:
    folder = GOLDEN / "runs" / run
    definition = read_text(folder / "train_val.prototxt", NetParameter).message
    expected = {layer.name: layer for layer in definition.layer}
    masked = 0
    for layer in read_binary(folder / f"{model}.caffemodel", NetParameter).layer:
        assert not layer.HasField("elu_param")
        assert not layer.HasField("bias_param")
        assert layer.cconvolution_param == expected[layer.name].cconvolution_param
        assert layer.cinner_product_param == expected[layer.name].cinner_product_param
        masked += layer.HasField("cconvolution_param") + layer.HasField("cinner_product_param")
    assert masked == 4


def test_layers_of_other_types_keep_elu_and_bias_settings(tmp_path: Path) -> None:
    net = NetParameter()
    net.layer.add(type="ELU").elu_param.alpha = 0.5
    net.layer.add(type="Bias").bias_param.axis = 2
    net.layer.add(type="CConvolution").cconvolution_param.c_rate = 2
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    assert read_binary(path, NetParameter) == net


def test_bytes_that_are_no_net_stay_as_they_are() -> None:
    whole = NetParameter()
    whole.layer.add(type="ROIPooling", name="layer").roi_pooling_param.pooled_h = 3
    raw = whole.SerializeToString()
    for bad in (raw[:-1], b"\xff" * 30, b"layer { }", b"\x0b\x0c"):
        assert renumber_layers(bad) == bad
