"""A residual net for photographs of solar cells."""

from __future__ import annotations

from caffe_dns.proto.caffe_pb2 import (
    NetParameter,
    RandomAspectRatioParameter,
    TransformationParameter,
)
from tools.zoo.builder import MAX, MSRA, NetBuilder
from tools.zoo.variants import deploy, prune

#: Height and width of the pictures; good and defective.
SIDE, CLASSES = 150, 2
#: What compute_image_mean says of the training pictures, rounded.
MEAN = 152
SOURCES = "data/elpv/train_lmdb", "data/elpv/test_lmdb"
BATCHES = 64, 41  # 16 of 41 are all of 656
#: Of the statistics of batches: by the default of 0.999 they would lag behind so short a training.
MOVING_AVERAGE = 0.95
#: Channels of the first stage; each further one has twice as many.
WIDTH = 32


def elpv(width: int = WIDTH) -> dict[str, NetParameter]:
    """ResNet-18 of half the width, for grayscale pictures."""
    net = NetBuilder("ResNet-18-elpv", weight_filler=MSRA)
    blob = net.convolution("conv1", _pictures(net), width, 7, stride=2, pad=3, bias_term=False)
    blob = net.relu("conv1_relu", net.batch_norm("bn_conv1", "scale_conv1", blob))
    blob = net.pool("pool1", blob, MAX, 3, 2)
    for stage in range(2, 6):
        for letter in "ab":
            widens = stage > 2 and letter == "a"
            blob = net.residual_block(f"{stage}{letter}", blob, width << (stage - 2), widens=widens)
    blob = net.inner_product("fc2", net.global_average("pool5", blob), CLASSES)
    net.scores(blob, {"accuracy": 1})
    for layer in net.net.layer:
        if layer.type == "BatchNorm":
            layer.batch_norm_param.moving_average_fraction = MOVING_AVERAGE
    return {
        "train_val": net.net,
        "prune_train_val": prune(net.net),
        "deploy": deploy(net.net, blob, (1, 1, SIDE, SIDE)),
    }


def _pictures(net: NetBuilder) -> str:
    """Whole pictures for tests; for training, parts of them, stretched and mirrored at random."""
    transform = TransformationParameter(mean_value=[MEAN], scale=1 / 64, mirror=True)
    top = net.data("data", SOURCES, BATCHES, transform)
    training = net.net.layer[0]
    training.transform_param.crop_size = SIDE
    training.transform_param.random_aspect_ratio_param.CopyFrom(
        RandomAspectRatioParameter(min_area_ratio=0.85, aspect_ratio_change=0.8)
    )
    training.data_param.shuffle = True
    return top
