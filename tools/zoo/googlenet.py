"""GoogLeNet, with the names of the caffemodel published by BVLC."""

from __future__ import annotations

from caffe_dns.proto.caffe_pb2 import NetParameter
from tools.zoo.builder import AVE, MAX, NetBuilder, constant
from tools.zoo.imagenet import CLASSES, ROUND_MEAN
from tools.zoo.variants import deploy, prune

#: Widths of an inception: 1x1, reduction for 3x3, 3x3, reduction for 5x5, 5x5, after the pool.
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
#: Inceptions after which an auxiliary classifier looks, and those before a pooling.
AUXILIARY = {"4a": "loss1", "4d": "loss2"}
POOL_AFTER = {"3b": "pool3/3x3_s2", "4e": "pool4/3x3_s2"}


def googlenet() -> dict[str, NetParameter]:
    """GoogLeNet with both auxiliary classifiers, which stay dense and are not deployed."""
    net = NetBuilder("GoogLeNet", bias_filler=constant(0.2))
    blob = net.imagenet(224, (32, 50), mean=ROUND_MEAN)
    blob = net.convolution("conv1/7x7_s2", blob, 64, 7, stride=2, pad=3)
    blob = net.pool("pool1/3x3_s2", net.relu("conv1/relu_7x7", blob), MAX, 3, 2)
    blob = net.lrn("pool1/norm1", blob)
    blob = net.relu("conv2/relu_3x3_reduce", net.convolution("conv2/3x3_reduce", blob, 64, 1))
    blob = net.relu("conv2/relu_3x3", net.convolution("conv2/3x3", blob, 192, 3, pad=1))
    blob = net.pool("pool2/3x3_s2", net.lrn("conv2/norm2", blob), MAX, 3, 2)
    dense: list[str] = []
    for name, widths in INCEPTIONS.items():
        blob = _inception(net, f"inception_{name}", blob, widths)
        if name in AUXILIARY:
            dense += _auxiliary(net, AUXILIARY[name], blob)
        if name in POOL_AFTER:
            blob = net.pool(POOL_AFTER[name], blob, MAX, 3, 2)
    blob = net.pool("pool5/7x7_s1", blob, AVE, 7, 1)
    blob = net.dropout("pool5/drop_7x7_s1", blob, 0.4)
    blob = net.inner_product("loss3/classifier", blob, CLASSES, bias_filler=constant(0))
    _scores(net, "loss3", "loss3/loss3", blob, weight=1)
    return {
        "train_val": net.net,
        "prune_train_val": prune(net.net, dense),
        "deploy": deploy(net.net, blob, (1, 3, 224, 224)),
    }


def _inception(net: NetBuilder, name: str, bottom: str, widths: tuple[int, ...]) -> str:
    narrow, reduce3, wide3, reduce5, wide5, projected = widths

    def convolve(which: str, blob: str, width: int, kernel: int = 1) -> str:
        blob = net.convolution(f"{name}/{which}", blob, width, kernel, pad=kernel // 2)
        return net.relu(f"{name}/relu_{which}", blob)

    branches = [
        convolve("1x1", bottom, narrow),
        convolve("3x3", convolve("3x3_reduce", bottom, reduce3), wide3, 3),
        convolve("5x5", convolve("5x5_reduce", bottom, reduce5), wide5, 5),
        convolve("pool_proj", net.pool(f"{name}/pool", bottom, MAX, 3, 1, pad=1), projected),
    ]
    return net.append(f"{name}/output", "Concat", branches, f"{name}/output")


def _auxiliary(net: NetBuilder, name: str, bottom: str) -> list[str]:
    """A classifier on the way; returns the layers in it that have weights."""
    blob = net.pool(f"{name}/ave_pool", bottom, AVE, 5, 3)
    blob = net.relu(f"{name}/relu_conv", net.convolution(f"{name}/conv", blob, 128, 1))
    blob = net.relu(f"{name}/relu_fc", net.inner_product(f"{name}/fc", blob, 1024))
    blob = net.dropout(f"{name}/drop_fc", blob, 0.7)
    blob = net.inner_product(f"{name}/classifier", blob, CLASSES, bias_filler=constant(0))
    _scores(net, name, f"{name}/loss", blob, weight=0.3)
    return [f"{name}/conv", f"{name}/fc", f"{name}/classifier"]


def _scores(net: NetBuilder, name: str, loss: str, blob: str, weight: float) -> None:
    top = f"{name}/{name}"
    net.append(loss, "SoftmaxWithLoss", (blob, "label"), top, loss_weight=[weight])
    net.accuracy(f"{name}/top-1", blob)
    net.accuracy(f"{name}/top-5", blob, top_k=5)
