"""ONNX nodes for layers of forks, run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.export.build import random_inputs, small_model

pytest.importorskip("onnx", reason="needs the package onnx")
pytest.importorskip("onnxruntime", reason="needs the package onnxruntime")

from caffe_dns.errors import CaffeError
from caffe_dns.export.onnx_file import to_onnx
from tests.export.test_onnx_file import assert_same, body, one
from tests.nets import input_layer, layer

CONVOLUTION = "num_output: 3 kernel_size: 3 pad: 1"
RESIZES = (
    (
        "ResizeNearestNeighbor",
        "resize_nearest_neighbor_param",
        ("", "align_corners: true", "half_pixel_onnx: true"),
    ),
    (
        "ResizeBilinear",
        "resize_bilinear_param",
        ("", "align_corners: true", "half_pixel_centers: true", "pytorch_half_pixel: true"),
    ),
)
LAYERS = {
    "depthwise": one("DepthwiseConvolution", f"convolution_param {{ {CONVOLUTION} group: 3 }}"),
    "dw": one("ConvolutionDepthwise", f"convolution_param {{ {CONVOLUTION} stride: 2 }}"),
    "dropout": one("Dropout", "dropout_param { dropout_ratio: 0.3 scale_train: false }"),
    "bn_nvcaffe": one("BatchNorm", "batch_norm_param { scale_bias: true eps: 0.01 }"),
    "bn_pspnet": one("BN", "bn_param { eps: 0.01 }"),
    "bn_frozen": one("BN", "bn_param { frozen: true }"),
    "bn_segnet": one("BN", "bn_param { bn_mode: INFERENCE }"),
    "interp": one("Interp", "interp_param { height: 12 width: 5 pad_beg: -1 }"),
    "interp_zoom": one("Interp", "interp_param { zoom_factor: 3 }"),
    "upsample": one("Upsample", "upsample_param { scale: 3 }"),
    "upsample_mask": layer(
        "pool", "Pooling", "data", "a b", "pooling_param { kernel_size: 2 stride: 2 }"
    )
    + layer("up", "Upsample", "a b", "up", "upsample_param { upsample_h: 7 upsample_w: 6 }"),
    "pool_mask": layer(
        "pool", "Pooling", "data", "a b", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }"
    ),
    "sparsify": layer("top", "Sparsify", "data", "top", "sparsify_param { thre: 0.5 }"),
    "soft zero": layer("top", "Sparsify", "data", "top", "sparsify_param { coef: 0.5 }"),
    "axpy": layer(
        "pool", "Pooling", "data", "a", "pooling_param { pool: AVE global_pooling: true }"
    )
    + layer("axpy", "Axpy", "a data data", "axpy"),
    "axpy_flat": layer("ip", "InnerProduct", "data", "a", "inner_product_param { num_output: 3 }")
    + layer("axpy", "Axpy", "a data data", "axpy"),
    "dense_block": one("DenseBlock", "denseblock_param { numTransition: 2 growthRate: 3 }"),
    "channel_scale": layer("s", "Slice", "data", "a b", "slice_param { slice_point: 1 }")
    + layer("scaled", "ChannelScale", "b a", "scaled"),
    "shuffle": one("ShuffleChannel", "shuffle_channel_param { group: 3 }"),
    "relu6": one("ReLU6"),
    "relu6_slope": one("ReLU6", "relu6_param { negative_slope: 0.25 }"),
    "insanity": one("Insanity"),
    "mish": one("Mish"),
    "selu": one("SeLu", "selu_param { alpha: 1.5 }"),
    "selu_dropout": one("SeLuDropout"),
    "continuation_indicator": one(
        "ContinuationIndicator", "continuation_indicator_param { time_step: 3 }"
    ),
    "conv_sides": one(
        "Convolution",
        "convolution_param { num_output: 3 kernel_size: 3 stride: 2 pad_r: 1 pad_b: 2 }",
    ),
    "deconv_sides": one(
        "Deconvolution", "convolution_param { num_output: 3 kernel_size: 3 stride: 2 pad_r: 1 }"
    ),
    "pool_sides": one("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad_r: 1 pad_b: 2 }"),
    "mean_sides": one("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad_b: 2 }"),
    "mean_inside": one(
        "Pooling", "pooling_param { pool: AVE_EXC_PAD kernel_size: 3 stride: 2 pad_l: 1 pad_b: 2 }"
    ),
    "squeeze": layer("mean", "Reduction", "data", "m", "reduction_param { axis: 2 }")
    + layer("flat", "Reshape", "m", "f", "reshape_param { shape { dim: [0, 1, -1, 1] } }")
    + layer("top", "Squeeze", "f", "top", "squeeze_param { axis: [1, -1] }"),
    "hard_swish": one("HardSwish"),
    "add": layer("m", "Reduction", "data", "m", "reduction_param { axis: 2 }")
    + layer("r", "Reshape", "m", "r", "reshape_param { shape { dim: [0, -1, 1, 1] } }")
    + layer("s", "Add", "data r", "s")
    + layer("top", "Mul", "r s", "top"),
    "pad": one("Pad", "pad_param { paddings: [0, 0, 1, 0, 2, 1, 0, 3] constant_values: 0.5 }"),
    "shuffled": layer(
        "c", "Convolution", "data", "c", "convolution_param { num_output: 8 kernel_size: 1 }"
    )
    + layer(
        "top",
        "DepthToSpace",
        "c",
        "top",
        "depth_to_space_param { block_size: 2 data_format: 'CRD' }",
    ),
    "depth": layer(
        "c", "Convolution", "data", "c", "convolution_param { num_output: 8 kernel_size: 1 }"
    )
    + layer("p", "Permute", "c", "p", "permute_param { order: [0, 2, 3, 1] }")
    + layer("top", "DepthToSpace", "p", "top", "depth_to_space_param { block_size: 2 }"),
    **{
        f"{kind} {way}": one(
            kind, f"{field} {{ output_height: 11 output_width: 5 data_format: 'NCHW' {way} }}"
        )
        for kind, field, ways in RESIZES
        for way in ways
    },
    "resize_rows": one("ResizeBilinear", "resize_bilinear_param { scale_height: 2.5 }"),
    "ceil_mode": one("Pooling", "pooling_param { kernel_size: 2 stride: 2 ceil_mode: false }"),
}


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_layer(name: str, tmp_path: Path) -> None:
    model, net = small_model(body(LAYERS[name]), tmp_path, batch=2)
    assert_same(to_onnx(model), net, random_inputs(net))


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1, 1)])
def test_roi_pooling(shape: tuple[int, ...], tmp_path: Path) -> None:
    settings = "roi_pooling_param { pooled_h: 3 pooled_w: 2 spatial_scale: 0.125 }"
    text = input_layer(data=(2, 3, 9, 7), rois=shape)
    text += layer("pool", "ROIPooling", "data rois", "pool", settings)
    model, net = small_model(text, tmp_path)
    regions = [[0, 8, 16, 50, 60], [1, 0, 0, 55, 71], [1, 30, 30, 90, 99], [0, 9, 9, 9, 9]]
    inputs = {**random_inputs(net), "rois": torch.tensor(regions).float().view(shape)}
    assert_same(to_onnx(model), net, inputs)


@pytest.mark.parametrize("reverse", ["true", "false"])
def test_reorg(reverse: str, tmp_path: Path) -> None:
    text = body(
        one("Reorg", f"reorg_param {{ stride: 2 reverse: {reverse} }}"),
        "dim: 2 dim: 8 dim: 4 dim: 6",
    )
    model, net = small_model(text, tmp_path, batch=2)
    assert_same(to_onnx(model), net, random_inputs(net))
    assert_same(to_onnx(model), net, random_inputs(net, batch=3))


def test_what_has_no_form_in_onnx(tmp_path: Path) -> None:
    model, _ = small_model(body(one("BN", "bn_param { scale_filler { value: 1 } }")), tmp_path)
    with pytest.raises(CaffeError, match=r"a BN with the statistics of the batch"):
        to_onnx(model)
    grown = "convolution_param { num_output: 2 kernel_size: 3 pad_r: -1 }"
    model, _ = small_model(body(one("Deconvolution", grown)), tmp_path)
    with pytest.raises(CaffeError, match=r"a padding below 0 cannot be exported to ONNX"):
        to_onnx(model)
    middles = "resize_nearest_neighbor_param { half_pixel_centers: true }"
    model, _ = small_model(body(one("ResizeNearestNeighbor", middles)), tmp_path)
    with pytest.raises(CaffeError, match=r"a ResizeNearestNeighbor with half_pixel_centers cannot"):
        to_onnx(model)
    far = "pooling_param { kernel_size: 2 stride: 4 }"
    model, _ = small_model(body(layer("pool", "Pooling", "data", "a b", far)), tmp_path)
    with pytest.raises(CaffeError, match=r"the second top of a Pooling with windows outside"):
        to_onnx(model)
