"""Shrunk models compute what the masked ones do, for all nets in models/ and random masks."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.export.deploy import Deployment, deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import shrink
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.upgrade import read_net
from tests.export.shrink.build import assert_same_outputs, channels, masked_net, pruned_model

MODELS = sorted((Path(__file__).parents[3] / "models").glob("*/deploy.prototxt"))


def fewer(channels: int) -> int:
    """Of so many channels, how many the quick tests leave."""
    return channels if channels <= 4 else channels // (8 if channels >= 256 else 4)


def scoring(file: Path) -> NetParameter:
    """A net of models/ without its Softmax or DetectionOutput, which hides what leads to it."""
    param = deploy(read_net(file).message).param
    while param.layer[-1].type in ("Softmax", "DetectionOutput"):
        del param.layer[-1]
    return param


def narrowed(param: NetParameter) -> NetParameter:
    """The same net with fewer channels; groups of one channel each stay that.

    What a detector predicts keeps its channels, which are shares and coordinates of boxes.
    """
    narrow = NetParameter()
    narrow.CopyFrom(param)
    for layer in narrow.layer:
        settings = layer.convolution_param
        if settings.num_output and "mbox" not in layer.name:
            if settings.group == settings.num_output:
                settings.group = fewer(settings.group)
            settings.num_output = fewer(settings.num_output)
        if layer.inner_product_param.num_output:
            layer.inner_product_param.num_output = fewer(layer.inner_product_param.num_output)
    return narrow


@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.parent.name)
def test_nets_of_models_narrowed(file: Path) -> None:
    model = pruned_model(narrowed(scoring(file)))
    shrunk = shrink(model)
    assert shrunk.model.total < model.total
    assert_same_outputs(model, shrunk.model)
    # What is small already stays as it is.
    assert channels(shrink(shrunk.model).model) == channels(shrunk.model)


@pytest.mark.parametrize(
    ("seed", "kept"),
    [(1, 0.4), *(pytest.param(*each, marks=pytest.mark.slow) for each in ((2, 0.3), (3, 0.8)))],
)
@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.parent.name)
def test_masked_nets_of_models_narrowed(file: Path, seed: int, kept: float) -> None:
    param = narrowed(scoring(file))
    net = masked_net(param, seed, kept)
    model = UnmaskedModel.of_net(Deployment(param), net)
    reduced = shrink(model).model
    assert reduced.total < model.total
    assert_same_outputs(net, reduced, seed)


@pytest.mark.slow
@pytest.mark.parametrize("file", MODELS, ids=lambda file: file.parent.name)
def test_nets_of_models(file: Path) -> None:
    model = pruned_model(scoring(file))
    shrunk = shrink(model)
    # Of ResNet-20 only channels inside of blocks can go: those that shortcuts add up are all read.
    most = 0.9 if file.parent.name == "resnet20" else 0.8
    assert shrunk.model.total < most * model.total
    assert_same_outputs(model, shrunk.model)
