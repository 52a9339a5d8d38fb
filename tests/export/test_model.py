"""Plain models: masks applied, layers standard, nothing missing; and OpenCV reads them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.export.caffemodel import to_caffemodel
from caffe_dns.export.deploy import deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.upgrade import read_net
from caffe_dns.weights import save_weights
from tests.export.build import CONVOLUTIONAL, random_inputs, randomize, small_model
from tests.oracle import OFFICIAL

PLAIN = """
name: "small"
layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  param { lr_mult: 1 } param { lr_mult: 2 } param { lr_mult: 0 }
  convolution_param {
    num_output: 4 kernel_size: 3 threshold: 0.5 weight_filler { type: "xavier" }
  }
}
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
  inner_product_param { num_output: 5 bias_term: false weight_mask_filler { value: 1 } } }
"""
OFFICIAL_KIND = (
    PLAIN.replace('"Convolution"', '"CConvolution"')
    .replace('"InnerProduct"', '"CInnerProduct"')
    .replace("threshold: 0.5 ", "")
    .replace(" weight_mask_filler { value: 1 }", "")
    .replace("convolution_param {", "cconvolution_param { c_rate: 2 } convolution_param {")
)


@pytest.mark.parametrize("text", [PLAIN, OFFICIAL_KIND], ids=["by deviation", "by magnitude"])
@pytest.mark.parametrize("ending", ["caffemodel", "caffemodel.h5"])
def test_masks_are_applied_and_gone(text: str, ending: str, tmp_path: Path) -> None:
    definition, weights = tmp_path / "net.prototxt", tmp_path / f"net.{ending}"
    definition.write_text(text)
    net = load_net(definition)
    randomize(net)
    generator = torch.Generator().manual_seed(5)
    for step in net.steps:
        for index in step.layer.mask_indices:
            mask = step.layer.blobs[index]
            mask.copy_((torch.rand(mask.shape, generator=generator) > 0.6).float())
    save_weights(net, weights, hdf5=ending.endswith("h5"))
    model = UnmaskedModel.load(deploy(read_net(definition).message), str(weights))
    assert [layer.type for layer in model.definition.param.layer] == [
        "Input",
        "Convolution",
        "InnerProduct",
    ]
    written = model.definition.to_text()
    assert not any(word in written for word in ("mask", "threshold", "c_rate", "lr_mult", "filler"))
    inputs = random_inputs(net)
    (tmp_path / "plain.prototxt").write_text(written)
    (tmp_path / "plain.caffemodel").write_bytes(to_caffemodel(model))
    plain = load_net(
        tmp_path / "plain.prototxt", weights=tmp_path / "plain.caffemodel", surgery=False
    )
    with torch.no_grad():
        np.testing.assert_array_equal(plain(inputs)["ip"], net(inputs)["ip"])
    zeros = [array[array == 0] for arrays in model.blobs for array in arrays]
    assert sum(map(len, zeros)) == model.total - model.kept > 0
    assert not any(np.signbit(values).any() for values in zeros)


def test_the_caffemodel_is_stock_caffes(tmp_path: Path) -> None:
    model, _ = small_model(PLAIN, tmp_path)
    param = NetParameter.FromString(to_caffemodel(model))
    assert [len(layer.blobs) for layer in param.layer] == [0, 2, 1]
    assert list(param.layer[1].blobs[0].shape.dim) == [4, 3, 3, 3]


def test_layers_without_weights_are_not_made_up(tmp_path: Path) -> None:
    small_model(PLAIN, tmp_path)
    other = tmp_path / "other.prototxt"
    other.write_text(PLAIN.replace('name: "ip"', 'name: "new"'))
    with pytest.raises(CaffeError, match=r"layer 'new': .*net.caffemodel has no weights"):
        UnmaskedModel.load(deploy(read_net(other).message), str(tmp_path / "net.caffemodel"))


def test_blobs_read_twice_and_shared(tmp_path: Path) -> None:
    text = PLAIN.replace("param { lr_mult: 1 }", 'param { name: "w" }')
    again = text[text.index('layer { name: "conv"') : text.index('layer { name: "ip"')]
    text += again.replace('name: "conv"', 'name: "conv2"').replace('top: "conv"', 'top: "conv2"')
    model, net = small_model(text, tmp_path)
    inputs = random_inputs(net)
    with torch.no_grad():
        expected, actual = net(inputs), model.to_net()(inputs)
    for blob in ("ip", "conv2"):
        np.testing.assert_array_equal(actual[blob], expected[blob])


READ_WITH_OPENCV = getattr(cv2.dnn, "readNetFromCaffe", None)
needs_importer = pytest.mark.skipif(
    READ_WITH_OPENCV is None, reason="OpenCV 5 reads no Caffe models any more"
)


def read_with_opencv(model: UnmaskedModel, folder: Path) -> cv2.dnn.Net:
    definition, weights = folder / "plain.prototxt", folder / "plain.caffemodel"
    definition.write_text(model.definition.to_text())
    weights.write_bytes(to_caffemodel(model))
    assert READ_WITH_OPENCV is not None
    return READ_WITH_OPENCV(str(definition), str(weights))


@needs_importer
@pytest.mark.parametrize("gone", ["", "alpha: 0.5 "])
def test_opencv_computes_the_same(gone: str, tmp_path: Path) -> None:
    # OpenCV's importer knows neither the k of LRN nor the round_mode of Pooling, and of an alpha
    # that is not given it takes one of its own.
    text = CONVOLUTIONAL.replace("beta: 0.75 k: 2", "beta: 0.75").replace("round_mode: FLOOR", "")
    assert gone in text
    text = text.replace(gone, "") if gone else text
    model, net = small_model(text, tmp_path)
    inputs = random_inputs(net, batch=1)
    reader = read_with_opencv(model, tmp_path)
    reader.setInput(inputs["data"].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(
            reader.forward("prob"), net(inputs)["prob"], rtol=1e-4, atol=1e-5
        )


@needs_importer
@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official models are not here")
def test_opencv_reads_the_pruned_lenet(tmp_path: Path) -> None:
    param = read_net(OFFICIAL / "lenet5.prototxt").message
    weights = str(OFFICIAL / "caffe_lenet5_sparse.caffemodel")
    model = UnmaskedModel.load(deploy(param), weights)
    net = model.to_net()
    inputs = random_inputs(net)
    reader = read_with_opencv(model, tmp_path)
    reader.setInput(inputs["data"].numpy())
    with torch.no_grad():
        np.testing.assert_allclose(reader.forward(), net(inputs)["prob"], rtol=1e-4, atol=1e-5)
