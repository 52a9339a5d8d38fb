"""A residual net for CIFAR-10."""

from __future__ import annotations

from caffe_dns.proto.caffe_pb2 import NetParameter, TransformationParameter
from tools.zoo.builder import MSRA, NetBuilder
from tools.zoo.variants import deploy, prune

SIDE, CLASSES = 32, 10
#: Means of the training images in the order of the database, red, green, blue; about 1 / deviation.
MEAN, SCALE = (125.3, 123.0, 113.9), 1 / 64
SOURCES = "data/cifar10/cifar10_train_lmdb", "data/cifar10/cifar10_test_lmdb"
BATCHES = 128, 100


def resnet20() -> dict[str, NetParameter]:
    """ResNet with 20 layers; where it widens, the shortcut has a convolution of 1x1."""
    net = NetBuilder("ResNet-20", weight_filler=MSRA)
    transform = TransformationParameter(mean_value=MEAN, scale=SCALE, mirror=True)
    blob = net.data("data", SOURCES, BATCHES, transform)
    blob = net.convolution("conv1", blob, 16, 3, pad=1, bias_term=False)
    blob = net.relu("conv1_relu", net.batch_norm("bn_conv1", "scale_conv1", blob))
    for stage, width in enumerate((16, 32, 64), start=2):
        for letter in "abc":
            widens = stage > 2 and letter == "a"
            blob = net.residual_block(f"{stage}{letter}", blob, width, widens=widens)
    blob = net.inner_product("fc10", net.global_average("pool4", blob), CLASSES)
    net.scores(blob, {"accuracy": 1})
    return {
        "train_val": net.net,
        "prune_train_val": prune(net.net),
        "deploy": deploy(net.net, blob, (1, 3, SIDE, SIDE)),
    }
