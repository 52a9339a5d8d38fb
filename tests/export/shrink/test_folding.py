"""Folded models compute what the given ones do, with fewer layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import fold, shrink
from caffe_dns.proto.caffe_pb2 import NetParameter
from tests.export.shrink.build import assert_same_outputs, pruned_model
from tests.export.shrink.test_shrinking import MODELS, narrowed, scoring
from tests.nets import input_layer, layer

CHAIN = (
    layer("n", "BatchNorm", "a", "a")
    + layer("s", "Scale", "a", "scaled", "scale_param { bias_term: true }")
    + layer("b", "Bias", "scaled", "scaled")
    + layer("relu", "ReLU", "scaled", "scaled")
)
IMAGES = input_layer(data=(2, 4, 6, 5))


def layers(model: UnmaskedModel) -> list[str]:
    param: NetParameter = model.definition.param
    return [f"{la.name}: {' '.join(la.bottom)} > {' '.join(la.top)}" for la in param.layer]


@pytest.mark.parametrize(
    "producer",
    [
        "Convolution' convolution_param { num_output: 6 kernel_size: 3 group: 2 bias_term: false }",
        "Convolution' convolution_param { num_output: 6 kernel_size: 1 }",
        "Deconvolution' convolution_param { num_output: 6 kernel_size: 3 stride: 2 group: 2 }",
        "InnerProduct' inner_product_param { num_output: 6 }",
        "InnerProduct' inner_product_param { num_output: 6 transpose: true bias_term: false }",
    ],
)
def test_chains_behind_weights(producer: str) -> None:
    kind, settings = producer.split("'", 1)
    model = pruned_model(IMAGES + layer("a", kind, "data", "a", settings) + CHAIN, kept=0.9)
    folded = fold(model)
    assert folded.layers == ["n", "s", "b"]
    assert layers(folded.model) == ["in:  > data", "a: data > scaled", "relu: scaled > scaled"]
    assert [array.shape for array in folded.model.blobs[1]] == [model.blobs[1][0].shape, (6,)]
    assert_same_outputs(model, folded.model)


def test_a_batch_norm_with_a_scale_and_a_bias_of_its_own() -> None:
    settings = "convolution_param { num_output: 6 kernel_size: 3 }"
    text = IMAGES + layer("a", "Convolution", "data", "a", settings)
    text += layer("n", "BatchNorm", "a", "n", "batch_norm_param { scale_bias: true }")
    model = pruned_model(text, kept=0.9)
    folded = fold(model)
    assert folded.layers == ["n"]
    assert_same_outputs(model, folded.model)


@pytest.mark.parametrize(
    ("behind", "names"),
    [
        ("layer { name: 'n' type: 'BatchNorm' bottom: 'a' top: 'a' batch_norm_param "
         "{ use_global_stats: false } }", []),
        (layer("s", "Scale", "a", "s", "scale_param { num_axes: 3 }"), []),
        (layer("s", "Scale", "a", "s", "scale_param { axis: 2 }"), []),
        (layer("n", "BatchNorm", "a", "n") + layer("r", "ReLU", "a", "r"), []),
        (layer("r", "ReLU", "a", "r") + layer("n", "BatchNorm", "r", "n"), []),
        (layer("s", "Scale", "a", "s", "scale_param { axis: -3 }"), ["s"]),
    ],
)  # fmt: skip
def test_what_is_not_one_number_for_each_channel_stays(behind: str, names: list[str]) -> None:
    conv = layer(
        "a", "Convolution", "data", "a", "convolution_param { num_output: 4 kernel_size: 1 }"
    )
    model = pruned_model(IMAGES + conv + behind, kept=1.0)
    folded = fold(model)
    assert folded.layers == names
    assert_same_outputs(model, folded.model)


def test_what_has_fewer_axes_stays() -> None:
    """A layer behind the weights whose top has no axis where their channels are."""
    conv = layer(
        "a", "Convolution", "data", "a", "convolution_param { num_output: 4 kernel_size: 1 }"
    )
    behind = layer("r", "Reduction", "a", "r", "reduction_param { axis: 1 }")
    model = pruned_model(IMAGES + conv + behind, kept=1.0)
    folded = fold(model)
    assert folded.layers == []
    assert_same_outputs(model, folded.model)


def test_statistics_of_no_batch() -> None:
    conv = layer(
        "a", "Convolution", "data", "a", "convolution_param { num_output: 4 kernel_size: 1 }"
    )
    norm = layer("n", "BatchNorm", "a", "a", "batch_norm_param { eps: 0.5 }")
    model = pruned_model(IMAGES + conv + norm, kept=1.0)
    model.blobs[2] = [np.zeros_like(array) for array in model.blobs[2]]
    assert_same_outputs(model, fold(model).model)


@pytest.mark.parametrize(
    "file",
    [file for file in MODELS if "BatchNorm" in file.read_text()],
    ids=lambda file: file.parent.name,
)
def test_nets_of_models_narrowed(file: Path) -> None:
    model = pruned_model(narrowed(scoring(file)))
    folded = fold(model)
    types = {layer.type for layer in folded.model.definition.param.layer}
    assert not types & {"BatchNorm", "Scale"}
    assert_same_outputs(model, folded.model)
    assert_same_outputs(model, shrink(folded.model).model)
