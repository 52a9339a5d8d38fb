"""The two nets for MNIST on which dynamic network surgery was published."""

from __future__ import annotations

from caffe_dns.proto.caffe_pb2 import (
    FillerParameter,
    NetParameter,
    ParamSpec,
    TransformationParameter,
)
from tools.zoo.builder import MAX, NetBuilder
from tools.zoo.variants import deploy, official, prune

SHAPE = (1, 1, 28, 28)
TRAINING = "data/mnist/mnist_train_lmdb"


def lenet() -> dict[str, NetParameter]:
    """LeNet-5 of Caffe's MNIST example. c_rates and iter_stop are the published model's."""
    net = _start("LeNet")
    blob = net.convolution("conv1", "data", 20, 5)
    blob = net.pool("pool1", blob, MAX, 2, 2)
    blob = net.convolution("conv2", blob, 50, 5)
    blob = net.pool("pool2", blob, MAX, 2, 2)
    blob = net.relu("relu1", net.inner_product("ip1", blob, 500))
    blob = net.inner_product("ip2", blob, 10)
    net.scores(blob, {"accuracy": 1})
    c_rates = {"conv1": 2, "conv2": 3, "ip1": 4, "ip2": 2.5}
    return _files(net, blob, c_rates, 14000)


def lenet_300_100() -> dict[str, NetParameter]:
    """LeNet-300-100: inner products alone."""
    net = _start("LeNet-300-100")
    blob = net.relu("relu1", net.inner_product("ip1", "data", 300))
    blob = net.relu("relu2", net.inner_product("ip2", blob, 100))
    blob = net.inner_product("ip3", blob, 10)
    net.scores(blob, {"accuracy": 1})
    return _files(net, blob, {"ip1": 5, "ip2": 3, "ip3": 3}, 20000)


def with_crops(net: NetParameter) -> NetParameter:
    """Trained on random crops of the images in their border."""
    cropped = NetParameter()
    cropped.CopyFrom(net)
    for layer in cropped.layer:
        if layer.data_param.source == TRAINING:
            layer.data_param.source = "data/mnist/mnist_train_padded_lmdb"
            layer.transform_param.crop_size = SHAPE[-1]
    return cropped


def _start(name: str) -> NetBuilder:
    net = NetBuilder(
        name,
        specs=(ParamSpec(lr_mult=1), ParamSpec(lr_mult=2)),
        bias_filler=FillerParameter(type="constant"),
    )
    sources = (TRAINING, "data/mnist/mnist_test_lmdb")
    net.data("mnist", sources, (64, 100), TransformationParameter(scale=1 / 256))
    return net


def _files(
    net: NetBuilder, classifier: str, c_rates: dict[str, float], iter_stop: int
) -> dict[str, NetParameter]:
    guo = official(net.net, c_rates, iter_stop)
    return {
        "train_val": net.net,
        "prune_train_val": prune(net.net),
        "guo_train_val": guo,
        "guo_crops_train_val": with_crops(guo),
        "deploy": deploy(net.net, classifier, SHAPE),
    }
