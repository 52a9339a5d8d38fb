"""What other Caffe forks number differently in their files.

Forks add fields under numbers that other forks, and later BVLC itself, give to other fields. A
layer has the settings of its own type only, so the type decides what a number means. In text files,
fields have names, and the forks' own names are used here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from caffe_dns.proto.wire import LENGTH, VARINT, Field, Malformed, read_fields, tag, varint

#: Numbers of NetParameter.layer and of LayerParameter.type.
_LAYER, _TYPE = 100, 2
#: Numbers of NetParameter.layers and of V1LayerParameter.blobs.
_OLD_LAYER, _OLD_BLOBS = 2, 6
#: In BlobProto: the shape, and in it the extents; the values; and where C3D 1.0 has those. It has
#: extents under 1 to 5, the last of them a number where everybody else has values.
_SHAPE, _DIM, _DATA, _C3D_DATA = 7, 1, 5, 6
_C3D_EXTENTS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Moved:
    """A field of a fork: its number here, and those of fields inside by number and wire type.

    The wire type tells forks apart that give a number to different things.
    """

    to: int
    inside: Mapping[tuple[int, int], int] = field(default_factory=dict)


#: Of C3D's convolution3d_param: kernel_depth, stride, temporal_stride, both fillers, filter_group,
#: temporal_pad.
_CONVOLUTION_3D = {
    (6, VARINT): 2100,
    (7, VARINT): 6,
    (8, VARINT): 2101,
    (9, LENGTH): 7,
    (10, LENGTH): 8,
    (11, VARINT): 2103,
    (12, VARINT): 2102,
}

#: Of C3D's video_data_param: new_height and further.
_VIDEO_DATA = {
    (9, VARINT): 10,
    (10, VARINT): 11,
    (11, VARINT): 12,
    (12, LENGTH): 13,
    (13, VARINT): 9,
    (15, VARINT): 2101,
    (16, VARINT): 2102,
    (17, VARINT): 2103,
}

#: Of Synopsys' convolution_param and pooling_param: pad_l, pad_r, pad_t, pad_b.
_CONVOLUTION = Moved(106, {(26 + side, VARINT): 2109 + side for side in range(4)})
_POOLING = Moved(121, {(16 + side, VARINT): 2106 + side for side in range(4)})

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
    # Synopsys; NVCaffe; the last three Intel Caffe.
    "BatchNorm": {
        139: Moved(
            139,
            {
                (4, VARINT): 2105,
                (5, LENGTH): 2100,
                (6, LENGTH): 2101,
                (7, VARINT): 2102,
                (7, LENGTH): 2103,
                (8, LENGTH): 2101,
                (9, VARINT): 2104,
            },
        )
    },
    # Synopsys.
    "Convolution": {106: _CONVOLUTION},
    "Deconvolution": {106: _CONVOLUTION},
    "ConvolutionDepthwise": {106: _CONVOLUTION},
    "Pooling": {121: _POOLING},
    "ReLU": {123: Moved(123, {(3, VARINT): 2100})},
    "Reshape": {133: Moved(133, {(4, VARINT): 2100})},
    "DetectionOutput": {204: Moved(204, {(32, VARINT): 2101, (33, VARINT): 2102})},
    "PriorBox": {203: Moved(203, {(17, VARINT): 2102, (18, VARINT): 2103})},
    "Squeeze": {241: Moved(2151)},
    "Pad": {224: Moved(2152)},
    "DepthToSpace": {208: Moved(2153)},
    "ResizeNearestNeighbor": {210: Moved(2154)},
    "ResizeBilinear": {226: Moved(2155)},
    "SpaceToBatchND": {236: Moved(2156)},
    "BatchToSpaceND": {235: Moved(2157)},
    "UpsampleDarknet": {209: Moved(2158)},
    # caffe_pp2.
    "SpatialTransformer": {1003: Moved(2159)},
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
    # Intel Caffe, MobileNet-YOLO.
    "RegionLoss": dict.fromkeys((209, 600), Moved(2123)),
    "EvalDetection": {301: Moved(2124)},
    # MobileNet-YOLO.
    "Yolov3": {603: Moved(2144)},
    # C3D.
    "Convolution3D": {6661: Moved(2130, _CONVOLUTION_3D)},
    "Deconvolution3D": {6661: Moved(2130, _CONVOLUTION_3D)},
    # C3D; P3D.
    "Pooling3D": {
        6662: Moved(2131),
        141: Moved(
            2131,
            {
                (2, VARINT): 4,
                (3, VARINT): 2,
                (4, VARINT): 3,
                (7, VARINT): 2102,
                (10, VARINT): 2100,
                (13, VARINT): 2101,
            },
        ),
    },
    # video-caffe; C3D.
    "VideoData": {7777: Moved(2132), 6660: Moved(2132, _VIDEO_DATA)},
    # DeepLab.
    "SegAccuracy": {154: Moved(2133)},
    # caffe-lstm and CTPN; CTPN.
    "Lstm": dict.fromkeys((201, 140), Moved(2134)),
    "Transpose": {142: Moved(2135)},
    "Reverse": {143: Moved(2136)},
    # MS-CNN.
    "ROIAlign": {147: Moved(2100)},
    # PVANet.
    "Proposal": {8266713: Moved(2126)},
    # SphereFace; L-Softmax; caffe-face.
    "MarginInnerProduct": {147: Moved(2127)},
    "LargeMarginInnerProduct": {202: Moved(2128)},
    "CenterLoss": {147: Moved(2129)},
    # happynear.
    "Insanity": {202: Moved(2117)},
    "Flip": {212: Moved(2139)},
    "LabelSpecificAdd": {241: Moved(2145)},
    "InnerDistance": {213: Moved(2160)},
    "GeneralContrastiveLoss": {215: Moved(2161)},
    "Accuracy": {102: Moved(102, {(4, VARINT): 2100})},
    "Parameter": {145: Moved(145, {(2, LENGTH): 2100})},
    # MNC.
    "ROIWarping": {11870: Moved(2147)},
    "MaskResize": {11890: Moved(2148)},
    # agethen.
    "ConvLSTM": {150: Moved(2149), 151: Moved(2150)},
    # caffe_ocr.
    "DenseBlock": {147: Moved(2146)},
    "Normalize": {214: Moved(2140)},
    # DeepDetect.
    "SeLu": {149: Moved(2141)},
    "SeLuDropout": {150: Moved(2142)},
    "ContinuationIndicator": {158: Moved(2118)},
    "CtcLoss": {157: Moved(2137)},
    "LabelsequenceAccuracy": {159: Moved(2138)},
    # caffe_ocr.
    "WarpCTCLoss": {159: Moved(2137, {(2, VARINT): 2100})},
    "CTCGreedyDecoder": {158: Moved(2143)},
    # SegNet; ENet.
    "DenseImageData": dict.fromkeys((138, 46), Moved(2112)),
    "YoloDetectionOutput": {601: Moved(2110)},
    "Yolov3DetectionOutput": {602: Moved(2111)},
}


def renumber_layers(net: bytes) -> bytes:
    """A serialised NetParameter with the settings of its layers under the numbers of ours.

    What is no NetParameter comes back as it is.
    """
    renumber = {_LAYER: _renumber_layer, _OLD_LAYER: _renumber_old_layer}
    view, renumbered, done = memoryview(net), bytearray(), 0
    try:
        for layer in read_fields(view):
            if layer.number not in renumber or layer.wire_type != LENGTH:
                continue
            content = renumber[layer.number](view[layer.value : layer.end])
            if content is not None:
                renumbered += view[done : layer.start]
                renumbered += _message(layer.number, content)
                done = layer.end
    except Malformed:
        return net
    if not done:
        return net
    renumbered += view[done:]
    return bytes(renumbered)


def _message(number: int, content: bytes) -> bytes:
    """A message as field `number` of another."""
    return tag(number, LENGTH) + varint(len(content)) + content


def _renumber_old_layer(layer: memoryview) -> bytes | None:
    """A V1 layer with blobs of C3D 1.0 in our numbers; None where it has none."""
    parts: list[bytes | memoryview] = []
    done = 0
    for found in read_fields(layer):
        if (found.number, found.wire_type) == (_OLD_BLOBS, LENGTH):
            blob = renumber_blob(layer[found.value : found.end])
            if blob is not None:
                parts += layer[done : found.start], _message(_OLD_BLOBS, blob)
                done = found.end
    return b"".join([*parts, layer[done:]]) if parts else None


def renumber_blob(blob: memoryview) -> bytes | None:
    """A blob of C3D 1.0 with its five extents as a shape; None for one of anybody else.

    Raises Malformed for what is no message.
    """
    fields = read_fields(blob)
    if not any((f.number, f.wire_type) == (_C3D_EXTENTS[-1], VARINT) for f in fields):
        return None
    extents = {f.number: blob[f.value : f.end] for f in read_fields(blob) if f.wire_type == VARINT}
    shape = b"".join(
        tag(_DIM, VARINT) + bytes(extents.get(number, b"\0")) for number in _C3D_EXTENTS
    )
    values = (
        _message(_DATA, bytes(blob[f.value : f.end]))
        for f in read_fields(blob)
        if (f.number, f.wire_type) == (_C3D_DATA, LENGTH)
    )
    return _message(_SHAPE, shape) + b"".join(values)


def _renumber_layer(layer: memoryview) -> bytes | None:
    """The layer in our numbers; None where they are those of the file."""
    type_ = b""
    for found in read_fields(layer):
        if found.number == _TYPE:
            type_ = bytes(layer[found.value : found.end])
    moved = _MOVED.get(type_.decode(errors="replace"))
    if moved is None or not any(found.number in moved for found in read_fields(layer)):
        return None
    return b"".join(
        part
        for found in read_fields(layer)
        for part in _renumber_field(layer, found, moved.get(found.number))
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
