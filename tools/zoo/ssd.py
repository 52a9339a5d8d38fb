"""A small SSD: boxes of three shapes, predicted from maps of three sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from caffe_dns.proto.caffe_pb2 import (
    TEST,
    TRAIN,
    AnnotatedDataParameter,
    BatchSampler,
    ConcatParameter,
    DataParameter,
    DetectionEvaluateParameter,
    DetectionOutputParameter,
    DistortionParameter,
    FlattenParameter,
    LayerParameter,
    LossParameter,
    MultiBoxLossParameter,
    NetParameter,
    NetStateRule,
    NonMaximumSuppressionParameter,
    PermuteParameter,
    PriorBoxParameter,
    ReshapeParameter,
    SampleConstraint,
    Sampler,
    SoftmaxParameter,
    TransformationParameter,
)
from tools.zoo.builder import MAX, MSRA, NetBuilder
from tools.zoo.variants import deploy_to, prune

#: Height and width of the pictures, and the classes with the background.
SIDE, CLASSES = 96, 4
BATCHES = {TRAIN: 32, TEST: 50}
FOLDER = "data/ssd_shapes"
#: Of a place: a square of each size, and two oblong boxes.
BOXES = 4


@dataclass(frozen=True)
class Source:
    """A map from which boxes are predicted, and the extents of its prior boxes in pixels."""

    blob: str
    min_size: int
    max_size: int


def ssd_shapes() -> dict[str, NetParameter]:
    """Convolutions normalised by batches, down to maps of 12 x 12, 6 x 6 and 3 x 3 places."""
    net = NetBuilder("SSD-shapes", weight_filler=MSRA)
    net.net.layer.extend(_pictures(phase) for phase in (TRAIN, TEST))
    blob = _normalised(net, "conv1", "data", 16, stride=2)
    blob = net.pool("pool2", _normalised(net, "conv2", blob, 32), MAX, 2, 2)
    blob = net.pool("pool3", _normalised(net, "conv3", blob, 48), MAX, 2, 2)
    maps = [_normalised(net, "conv4_2", _normalised(net, "conv4_1", blob, 64), 64)]
    for name in ("conv5", "conv6"):
        narrow = _normalised(net, f"{name}_1", maps[-1], 48, kernel=1)
        maps.append(_normalised(net, f"{name}_2", narrow, 96, stride=2))
    sizes = (18, 30, 44, 62)
    sources = [Source(*each) for each in zip(maps, sizes, sizes[1:], strict=False)]
    predictions = [_joined(net, sources, what) for what in ("loc", "conf", "priorbox")]
    _loss(net, predictions)
    _detections(net, predictions)
    return {
        "train_val": net.net,
        "prune_train_val": prune(net.net),
        "deploy": deploy_to(net.net, "detection_out", (1, 3, SIDE, SIDE)),
    }


def _normalised(
    net: NetBuilder, name: str, bottom: str, width: int, *, kernel: int = 3, stride: int = 1
) -> str:
    blob = net.convolution(
        name, bottom, width, kernel, stride=stride, pad=kernel // 2, bias_term=False
    )
    return net.relu(f"{name}/relu", net.batch_norm(f"{name}/bn", f"{name}/scale", blob))


# Pictures ---------------------------------------------------------------------------------------


def _pictures(phase: int) -> LayerParameter:
    layer = LayerParameter(name="data", type="AnnotatedData", top=["data", "label"])
    layer.include.append(NetStateRule(phase=phase))  # type: ignore[arg-type]
    layer.transform_param.CopyFrom(TransformationParameter(mean_value=[128] * 3, scale=1 / 64))
    source = f"{FOLDER}/{'train' if phase == TRAIN else 'test'}_lmdb"
    layer.data_param.CopyFrom(
        DataParameter(source=source, batch_size=BATCHES[phase], backend=DataParameter.LMDB)
    )
    layer.annotated_data_param.CopyFrom(
        AnnotatedDataParameter(label_map_file=f"{FOLDER}/labelmap.prototxt")
    )
    if phase == TRAIN:
        _augment(layer)
    return layer


def _augment(layer: LayerParameter) -> None:
    """Mirrored and in other colours; half of the pictures are a part of one, with an object."""
    layer.transform_param.mirror = True
    resized = layer.transform_param.resize_param.add()
    resized.height = resized.width = SIDE
    layer.transform_param.distort_param.CopyFrom(
        DistortionParameter(
            brightness_prob=0.5, brightness_delta=32,
            contrast_prob=0.5, contrast_lower=0.7, contrast_upper=1.3,
            hue_prob=0.5, hue_delta=18,
            saturation_prob=0.5, saturation_lower=0.7, saturation_upper=1.3,
        )
    )  # fmt: skip
    layer.annotated_data_param.batch_sampler.extend(
        [
            BatchSampler(use_original_image=True, max_sample=1, max_trials=1),
            BatchSampler(
                use_original_image=True,
                sampler=Sampler(
                    min_scale=0.7, max_scale=1, min_aspect_ratio=0.8, max_aspect_ratio=1.25
                ),
                sample_constraint=SampleConstraint(min_object_coverage=0.9),
                max_sample=1,
                max_trials=20,
            ),
        ]
    )


# Predictions ------------------------------------------------------------------------------------


def _joined(net: NetBuilder, sources: Sequence[Source], what: str) -> str:
    """The locations, the scores or the prior boxes of all maps, one behind the other."""
    axis = 2 if what == "priorbox" else 1
    make = _prior_boxes if what == "priorbox" else _predicted
    parts = [make(net, source, what) for source in sources]
    return net.append(
        f"mbox_{what}", "Concat", parts, f"mbox_{what}", concat_param=ConcatParameter(axis=axis)
    )


def _predicted(net: NetBuilder, source: Source, what: str) -> str:
    numbers = 4 if what == "loc" else CLASSES
    name = f"{source.blob}_mbox_{what}"
    blob = net.convolution(name, source.blob, BOXES * numbers, 3, pad=1)
    order = PermuteParameter(order=[0, 2, 3, 1])
    blob = net.append(f"{name}_perm", "Permute", (blob,), f"{name}_perm", permute_param=order)
    flat = FlattenParameter(axis=1)
    return net.append(f"{name}_flat", "Flatten", (blob,), f"{name}_flat", flatten_param=flat)


def _prior_boxes(net: NetBuilder, source: Source, what: str) -> str:
    settings = PriorBoxParameter(
        min_size=[source.min_size],
        max_size=[source.max_size],
        aspect_ratio=[1.5],
        clip=False,  # the default; OpenCV's is another
        variance=[0.1, 0.1, 0.2, 0.2],
    )
    name = f"{source.blob}_mbox_{what}"
    return net.append(name, "PriorBox", (source.blob, "data"), name, prior_box_param=settings)


def _loss(net: NetBuilder, predictions: list[str]) -> None:
    net.append(
        "mbox_loss", "MultiBoxLoss", (*predictions, "label"), "mbox_loss",
        include=[NetStateRule(phase=TRAIN)],
        propagate_down=[True, True, False, False],
        loss_param=LossParameter(normalization=LossParameter.VALID),
        multibox_loss_param=MultiBoxLossParameter(
            num_classes=CLASSES, code_type=PriorBoxParameter.CENTER_SIZE
        ),
    )  # fmt: skip


def _detections(net: NetBuilder, predictions: list[str]) -> None:
    """In tests: the boxes found, and which of them are right."""
    locations, scores, prior_boxes = predictions
    for name, kind, settings in _probabilities():
        scores = net.append(name, kind, (scores,), name, include=[_in_tests()], **settings)
    net.append(
        "detection_out", "DetectionOutput", (locations, scores, prior_boxes), "detection_out",
        include=[_in_tests()],
        # The first two are the defaults, without which OpenCV does not read it.
        detection_output_param=DetectionOutputParameter(
            share_location=True,
            background_label_id=0,
            num_classes=CLASSES,
            nms_param=NonMaximumSuppressionParameter(nms_threshold=0.45, top_k=200),
            code_type=PriorBoxParameter.CENTER_SIZE,
            keep_top_k=100,
            confidence_threshold=0.01,
        ),
    )  # fmt: skip
    net.append(
        "detection_eval", "DetectionEvaluate", ("detection_out", "label"), "detection_eval",
        include=[_in_tests()],
        detection_evaluate_param=DetectionEvaluateParameter(num_classes=CLASSES),
    )  # fmt: skip


def _probabilities() -> Iterator[tuple[str, str, dict[str, object]]]:
    """The layers that turn scores into shares of the classes of each box."""
    shape = ReshapeParameter()
    shape.shape.dim.extend((0, -1, CLASSES))
    yield "mbox_conf_reshape", "Reshape", {"reshape_param": shape}
    yield "mbox_conf_softmax", "Softmax", {"softmax_param": SoftmaxParameter(axis=2)}
    yield "mbox_conf_flatten", "Flatten", {"flatten_param": FlattenParameter(axis=1)}


def _in_tests() -> NetStateRule:
    return NetStateRule(phase=TEST)
