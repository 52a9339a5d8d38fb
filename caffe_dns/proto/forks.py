"""What other Caffe forks number differently in their files.

Forks add fields under numbers that other forks, and later BVLC itself, give to other fields. A
layer has the settings of its own type only, so the type tells what a number means. In texts fields
have names, which are the forks' own here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from caffe_dns.proto.wire import LENGTH, VARINT, Field, Malformed, read_fields, tag, varint

#: Numbers of NetParameter.layer and of LayerParameter.type.
_LAYER, _TYPE = 100, 2


@dataclass(frozen=True)
class Moved:
    """A field of a fork: its number here, and those of fields inside by number and wire type.

    The wire type tells forks apart that give a number to different things.
    """

    to: int
    inside: Mapping[tuple[int, int], int] = field(default_factory=dict)


#: Layer type -> the number of a field in a fork -> what it is here.
_MOVED: dict[str, dict[int, Moved]] = {
    # yiwenguo's surgery fork; BVLC has elu_param and bias_param there.
    "CConvolution": {140: Moved(1140)},
    "CInnerProduct": {141: Moved(1141)},
    # Fast R-CNN and R-FCN, Intel Caffe, yjxiong's fork, MS-CNN.
    "ROIPooling": dict.fromkeys((8266711, 154, 150, 147), Moved(2100)),
    # Faster R-CNN and R-FCN, Intel Caffe.
    "SmoothL1Loss": dict.fromkeys((8266712, 148), Moved(2101)),
    # R-FCN, Intel Caffe.
    "BoxAnnotatorOHEM": dict.fromkeys((10000, 152), Moved(2102)),
    "PSROIPooling": dict.fromkeys((10001, 153), Moved(2103)),
    # PSPNet, yjxiong's fork; SegNet and ENet.
    "BN": {
        **dict.fromkeys((152, 137), Moved(2104)),
        45: Moved(2104, {(1, LENGTH): 2100, (2, LENGTH): 2101, (3, VARINT): 2102}),
    },
    # NVCaffe; the last three Intel Caffe.
    "BatchNorm": {
        139: Moved(
            139,
            {
                (5, LENGTH): 2100,
                (6, LENGTH): 2101,
                (7, VARINT): 2102,
                (7, LENGTH): 2103,
                (8, LENGTH): 2101,
                (9, VARINT): 2104,
            },
        )
    },
    # DeepLab and PSPNet.
    "Interp": {143: Moved(2105)},
    # SegNet, ENet, MobileNet-YOLO.
    "Upsample": dict.fromkeys((137, 147, 150), Moved(2106)),
    # farmingyard's ShuffleNet.
    "ShuffleChannel": {164: Moved(2107)},
    # MobileNet-YOLO, Intel Caffe.
    "Reorg": dict.fromkeys((149, 159), Moved(2108)),
    "ReLU6": {211: Moved(2109)},
    # MS-CNN.
    "BoxOutput": {151: Moved(2114), 154: Moved(2115)},
    "DecodeBBox": {154: Moved(2115), 155: Moved(2116)},
    "DetectionLoss": {149: Moved(2119), 154: Moved(2115)},
    "DetectionAccuracy": {150: Moved(2120), 154: Moved(2115)},
    "ProposalTarget": {152: Moved(2121), 154: Moved(2115)},
    "BboxAccuracy": {154: Moved(2115)},
    "ImageGtData": {153: Moved(2122)},
    "Sparsify": {147: Moved(2113)},
    # Intel Caffe.
    "RegionLoss": {209: Moved(2123)},
    "EvalDetection": {301: Moved(2124)},
    # PVANet.
    "Proposal": {8266713: Moved(2126)},
    # SphereFace; L-Softmax; caffe-face.
    "MarginInnerProduct": {147: Moved(2127)},
    "LargeMarginInnerProduct": {202: Moved(2128)},
    "CenterLoss": {147: Moved(2129)},
    # happynear.
    "Insanity": {202: Moved(2117)},
    # DeepDetect.
    "ContinuationIndicator": {158: Moved(2118)},
    # SegNet; ENet.
    "DenseImageData": dict.fromkeys((138, 46), Moved(2112)),
    "YoloDetectionOutput": {601: Moved(2110)},
    "Yolov3DetectionOutput": {602: Moved(2111)},
}


def renumber_layers(net: bytes) -> bytes:
    """A serialized NetParameter with the settings of its layers under the numbers of ours.

    What is no NetParameter comes back as it is.
    """
    try:
        return b"".join(_renumber_net(memoryview(net)))
    except Malformed:
        return net


def _renumber_net(net: memoryview) -> Iterator[bytes | memoryview]:
    done = 0
    for layer in read_fields(net):
        if (layer.number, layer.wire_type) != (_LAYER, LENGTH):
            continue
        content = net[layer.value : layer.end]
        renumbered = _renumber_layer(content)
        if renumbered is not None:
            yield net[done : layer.start]
            yield tag(_LAYER, LENGTH) + varint(len(renumbered))
            yield renumbered
            done = layer.end
    yield net[done:]


def _renumber_layer(layer: memoryview) -> bytes | None:
    """The layer in our numbers; None where they are those of the file."""
    fields = list(read_fields(layer))
    types = [bytes(layer[f.value : f.end]) for f in fields if f.number == _TYPE]
    moved = _MOVED.get(types[-1].decode(errors="replace")) if types else None
    if moved is None or not any(f.number in moved for f in fields):
        return None
    return b"".join(
        part for found in fields for part in _renumber_field(layer, found, moved.get(found.number))
    )


def _renumber_field(
    layer: memoryview, found: Field, moved: Moved | None
) -> Iterator[bytes | memoryview]:
    """The bytes of a field of a layer, under its number here."""
    if moved is None or found.wire_type != LENGTH:
        yield layer[found.start : found.end]
        return
    settings = layer[found.value : found.end]
    content = settings
    if moved.inside:
        content = memoryview(b"".join(_renumber_settings(settings, moved.inside)))
    yield tag(moved.to, LENGTH) + varint(len(content))
    yield content


def _renumber_settings(
    settings: memoryview, numbers: Mapping[tuple[int, int], int]
) -> Iterator[bytes | memoryview]:
    for found in read_fields(settings):
        number = numbers.get((found.number, found.wire_type), found.number)
        yield tag(number, found.wire_type)
        if found.wire_type == LENGTH:
            yield varint(found.end - found.value)
        yield settings[found.value : found.end]
