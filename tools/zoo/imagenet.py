"""Published nets for ImageNet, with the names that their published caffemodels have."""

from __future__ import annotations

from collections.abc import Collection

from caffe_dns.proto.caffe_pb2 import NetParameter, ParamSpec
from tools.zoo.builder import AVE, MAX, MSRA, NetBuilder, constant, gaussian
from tools.zoo.variants import deploy, dummy, prune

CLASSES = 1000
#: Mean pixels in the order blue, green, red, as published with VGG, and the same rounded.
MEAN = (103.939, 116.779, 123.68)
ROUND_MEAN = (104.0, 117.0, 123.0)
TOP_1_AND_5 = {"accuracy": 1, "accuracy_5": 5}


def _files(
    net: NetParameter, classifier: str, crop: int, dense: Collection[str] = ()
) -> dict[str, NetParameter]:
    return {
        "train_val": net,
        "prune_train_val": prune(net, dense),
        "deploy": deploy(net, classifier, (1, 3, crop, crop)),
    }


def caffenet() -> dict[str, NetParameter]:
    """CaffeNet: AlexNet with pooling before normalisation."""
    return _alexnet("CaffeNet", pool_first=True, bias=1)


def alexnet() -> dict[str, NetParameter]:
    """AlexNet in the grouping of the original, on one GPU."""
    return _alexnet("AlexNet", pool_first=False, bias=0.1)


def _alexnet(name: str, *, pool_first: bool, bias: float) -> dict[str, NetParameter]:
    net = NetBuilder(name, weight_filler=gaussian(0.01))
    high = {"bias_filler": constant(bias)}
    blob = net.imagenet(227, (256, 50))
    blob = net.relu("relu1", net.convolution("conv1", blob, 96, 11, stride=4))
    blob = _pool_and_norm(net, "1", blob, pool_first)
    blob = net.relu("relu2", net.convolution("conv2", blob, 256, 5, pad=2, group=2, **high))
    blob = _pool_and_norm(net, "2", blob, pool_first)
    blob = net.relu("relu3", net.convolution("conv3", blob, 384, 3, pad=1))
    blob = net.relu("relu4", net.convolution("conv4", blob, 384, 3, pad=1, group=2, **high))
    blob = net.relu("relu5", net.convolution("conv5", blob, 256, 3, pad=1, group=2, **high))
    blob = net.pool("pool5", blob, MAX, 3, 2)
    for number in ("6", "7"):
        blob = net.inner_product(f"fc{number}", blob, 4096, weight_filler=gaussian(0.005), **high)
        blob = net.dropout(f"drop{number}", net.relu(f"relu{number}", blob), 0.5)
    blob = net.inner_product("fc8", blob, CLASSES)
    net.scores(blob, TOP_1_AND_5)
    return _files(net.net, blob, 227)


def _pool_and_norm(net: NetBuilder, number: str, blob: str, pool_first: bool) -> str:
    if pool_first:
        return net.lrn(f"norm{number}", net.pool(f"pool{number}", blob, MAX, 3, 2))
    return net.pool(f"pool{number}", net.lrn(f"norm{number}", blob), MAX, 3, 2)


def alexnet_bn_dns() -> dict[str, NetParameter]:
    """AlexNet without groups, normalised by batches; its convolutions are pruned."""
    net = NetBuilder("AlexNet-BN", weight_filler=gaussian(0.01))
    blob = net.imagenet(224, (200, 200), mean=MEAN)
    high = {"bias_filler": constant(0.1)}
    blob = net.convolution("conv1", blob, 96, 11, stride=4, pad=2)
    blob = net.pool("pool1", _normalised(net, "1", blob), MAX, 3, 2)
    blob = _normalised(net, "2", net.convolution("conv2", blob, 256, 5, pad=2, **high))
    blob = net.pool("pool2", blob, MAX, 3, 2)
    blob = _normalised(net, "3", net.convolution("conv3", blob, 384, 3, pad=1))
    blob = _normalised(net, "4", net.convolution("conv4", blob, 384, 3, pad=1, **high))
    blob = _normalised(net, "5", net.convolution("conv5", blob, 256, 3, pad=1, **high))
    blob = net.pool("pool5", blob, MAX, 3, 2)
    for number in ("6", "7"):
        blob = net.inner_product(f"fc{number}", blob, 4096, weight_filler=gaussian(0.005), **high)
        blob = net.dropout(f"drop{number}", _normalised(net, number, blob), 0.5)
    blob = net.inner_product("fc8", blob, CLASSES)
    net.scores(blob, TOP_1_AND_5)
    pruned = prune(net.net, dense=("fc6", "fc7", "fc8"))
    return {
        "train_val": pruned,
        "dummy_train_val": dummy(pruned, (8, 3, 224, 224)),
        "deploy": deploy(net.net, blob, (1, 3, 224, 224)),
    }


def _normalised(net: NetBuilder, number: str, blob: str) -> str:
    return net.relu(f"relu{number}", net.batch_norm(f"bn{number}", f"scale{number}", blob))


def vgg16() -> dict[str, NetParameter]:
    """VGG with 16 layers. Filled by msra, it trains without a shallower net's weights."""
    net = NetBuilder("VGG-16", weight_filler=MSRA)
    blob = net.imagenet(224, (64, 25), mean=MEAN)
    for stage, (depth, width) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for number in range(1, depth + 1):
            blob = net.convolution(f"conv{stage}_{number}", blob, width, 3, pad=1)
            blob = net.relu(f"relu{stage}_{number}", blob)
        blob = net.pool(f"pool{stage}", blob, MAX, 2, 2)
    for name in ("6", "7"):
        blob = net.inner_product(f"fc{name}", blob, 4096, weight_filler=gaussian(0.005))
        blob = net.dropout(f"drop{name}", net.relu(f"relu{name}", blob), 0.5)
    blob = net.inner_product("fc8", blob, CLASSES, weight_filler=gaussian(0.01))
    net.scores(blob, TOP_1_AND_5)
    return _files(net.net, blob, 224)


def squeezenet() -> dict[str, NetParameter]:
    """SqueezeNet 1.0."""
    net = NetBuilder("SqueezeNet")
    blob = net.imagenet(227, (32, 25), mean=ROUND_MEAN, mirror=False)
    blob = net.relu("relu_conv1", net.convolution("conv1", blob, 96, 7, stride=2))
    blob = net.pool("pool1", blob, MAX, 3, 2)
    for number, squeeze in enumerate((16, 16, 32, 32, 48, 48, 64, 64), start=2):
        blob = _fire(net, f"fire{number}", blob, squeeze)
        if number in (4, 8):
            blob = net.pool(f"pool{number}", blob, MAX, 3, 2)
    blob = net.dropout("drop9", blob, 0.5)
    blob = net.convolution("conv10", blob, CLASSES, 1, pad=1, weight_filler=gaussian(0.01))
    blob = net.global_average("pool10", net.relu("relu_conv10", blob))
    net.scores(blob, TOP_1_AND_5)
    return _files(net.net, blob, 227)


def _fire(net: NetBuilder, name: str, bottom: str, squeeze: int) -> str:
    """A squeezing convolution, and two of four times its width that see what it leaves."""
    squeezed = net.convolution(f"{name}/squeeze1x1", bottom, squeeze, 1)
    net.relu(f"{name}/relu_squeeze1x1", squeezed)
    expanded = []
    for kernel in (1, 3):
        which = f"expand{kernel}x{kernel}"
        blob = net.convolution(f"{name}/{which}", squeezed, 4 * squeeze, kernel, pad=kernel // 2)
        expanded.append(net.relu(f"{name}/relu_{which}", blob))
    return net.append(f"{name}/concat", "Concat", expanded, f"{name}/concat")


def mobilenet_v1() -> dict[str, NetParameter]:
    """MobileNet 1.0 at 224; its depthwise convolutions stay dense."""
    net = NetBuilder("MobileNet", weight_filler=MSRA)
    blob = net.imagenet(224, (32, 25), mean=(103.94, 116.78, 123.68), scale=0.017)
    blob = net.convolution("conv1", blob, 32, 3, stride=2, pad=1, bias_term=False)
    blob = _mobile_norm(net, "relu1", blob)
    depthwise = []
    channels = 32
    for number, width, stride in (
        ("2_1", 64, 1),
        ("2_2", 128, 2),
        ("3_1", 128, 1),
        ("3_2", 256, 2),
        ("4_1", 256, 1),
        ("4_2", 512, 2),
        *((f"5_{index}", 512, 1) for index in range(1, 6)),
        ("5_6", 1024, 2),
        ("6", 1024, 1),
    ):
        depthwise.append(f"conv{number}/dw")
        blob = net.convolution(
            f"conv{number}/dw", blob, channels, 3,
            stride=stride, pad=1, group=channels, bias_term=False,
        )  # fmt: skip
        blob = _mobile_norm(net, f"relu{number}/dw", blob)
        blob = net.convolution(f"conv{number}/sep", blob, width, 1, bias_term=False)
        blob = _mobile_norm(net, f"relu{number}/sep", blob)
        channels = width
    blob = net.convolution("fc7", net.global_average("pool6", blob), CLASSES, 1)
    net.scores(blob, TOP_1_AND_5)
    return _files(net.net, blob, 224, dense=depthwise)


def _mobile_norm(net: NetBuilder, relu: str, blob: str) -> str:
    """Normalisation of a convolution's top, whose name it has; its factors do not decay."""
    spec = ParamSpec(lr_mult=1, decay_mult=0)
    return net.relu(relu, net.batch_norm(f"{blob}/bn", f"{blob}/scale", blob, (spec, spec)))


def resnet50() -> dict[str, NetParameter]:
    """ResNet with 50 layers, strides in the first convolution of a block."""
    net = NetBuilder("ResNet-50", weight_filler=MSRA)
    blob = net.imagenet(224, (32, 25), mean=ROUND_MEAN)
    blob = net.convolution("conv1", blob, 64, 7, stride=2, pad=3)
    blob = net.relu("conv1_relu", net.batch_norm("bn_conv1", "scale_conv1", blob))
    blob = net.pool("pool1", blob, MAX, 3, 2)
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=2):
        for letter in "abcdef"[:blocks]:
            stride = 2 if letter == "a" and stage > 2 else 1
            blob = _bottleneck(net, f"{stage}{letter}", blob, width, stride)
    blob = net.pool("pool5", blob, AVE, 7, 1)
    blob = net.inner_product("fc1000", blob, CLASSES)
    net.scores(blob, TOP_1_AND_5)
    return _files(net.net, blob, 224)


def _bottleneck(net: NetBuilder, block: str, bottom: str, width: int, stride: int) -> str:
    """Three convolutions beside a shortcut; the first block of a stage widens the shortcut."""
    shortcut = bottom
    if block.endswith("a"):
        shortcut = net.residual_branch(f"{block}_branch1", bottom, 4 * width, 1, stride)
    blob = bottom
    for letter, kernel, step in (("a", 1, stride), ("b", 3, 1)):
        blob = net.residual_branch(f"{block}_branch2{letter}", blob, width, kernel, step)
        blob = net.relu(f"res{block}_branch2{letter}_relu", blob)
    blob = net.residual_branch(f"{block}_branch2c", blob, 4 * width, 1)
    return net.residual_sum(block, shortcut, blob)
