"""Converts forks' names: Caffe's layers under other names, different layers under one name."""

from __future__ import annotations

from collections.abc import Callable

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import ConvolutionParameter, LayerParameter

#: What tells TSN's VideoData from that of C3D and video-caffe.
_OF_SEGMENTS = ("num_segments", "modality", "name_pattern", "grayscale")
#: What Caffe's convolutions have for an axis at most.
_MOST = 2**31 - 1


def say_as_ours(layer: LayerParameter) -> None:
    """Turn a layer of a fork into what it is here, in place.

    What is left out by a definition stays so, and building the layer complains of it. Raises
    CaffeError for values that the layer here cannot have.
    """
    if layer.type in _SAYING:
        _SAYING[layer.type](layer)
    elif layer.type in _KINDS:
        is_other, other = _KINDS[layer.type]
        if is_other(layer):
            layer.type = other


def _say_over_time(layer: LayerParameter) -> None:
    """C3D's: a value for time, and one for height and width."""
    layer.type = layer.type.removesuffix("3D")
    if layer.HasField("convolution3d_param"):
        layer.convolution_param.CopyFrom(layer.convolution3d_param)
        layer.ClearField("convolution3d_param")
    _merge_time(layer.convolution_param)


def _merge_time(settings: ConvolutionParameter) -> None:
    """Put the values for time in front of those for height and width."""
    for values, name, default in (
        (settings.kernel_size, "kernel_depth", 0),
        (settings.stride, "temporal_stride", 1),
        (settings.pad, "temporal_pad", 0),
    ):
        # Lists of one, as C3D has a single value there.
        side = values[-1] if values else default
        values[:] = [getattr(settings, name), side, side]
        settings.ClearField(name)
    # Neither counts there: of all channels, whatever the groups are.
    settings.ClearField("group")
    settings.ClearField("filter_group")


def _say_by_shapes(layer: LayerParameter) -> None:
    """video-caffe's: values as shapes."""
    layer.type = "Convolution"
    settings = layer.convolution_param
    for values, name in (
        (settings.kernel_size, "kernel_shape"),
        (settings.stride, "stride_shape"),
        (settings.pad, "pad_shape"),
    ):
        extents = getattr(settings, name).dim
        if any(not 0 <= extent <= _MOST for extent in extents):
            what = f"has {list(extents)}; 0 to {_MOST} would be right"
            raise CaffeError(what, layer=layer.name, field=f"convolution_param.{name}")
        values[:] = extents
        settings.ClearField(name)


def _say_holes(layer: LayerParameter) -> None:
    """The first DeepLab's dilation."""
    settings = layer.convolution_param
    if not settings.HasField("hole"):
        return
    if settings.dilation or settings.HasField("dilation_h"):
        what = "give either hole or dilation, not both"
        raise CaffeError(what, layer=layer.name, field="convolution_param.hole")
    settings.dilation[:] = [min(settings.hole, _MOST)]
    settings.ClearField("hole")


def _say_relu6(layer: LayerParameter) -> None:
    """Synopsys' way to say where a ReLU ends."""
    if layer.relu_param.relu6:
        layer.type = "ReLU6"
        layer.relu6_param.CopyFrom(layer.relu_param)
        layer.relu6_param.ClearField("relu6")
        layer.ClearField("relu_param")


def _say_shuffled(layer: LayerParameter) -> None:
    """Synopsys' and Intel Caffe's squares of channels."""
    if layer.reshape_param.pixelshuffler != 1:
        layer.type = "DepthToSpace"
        layer.depth_to_space_param.block_size = layer.reshape_param.pixelshuffler
        layer.depth_to_space_param.data_format = "CRD"
        layer.ClearField("reshape_param")


def _say_upsampled(layer: LayerParameter) -> None:
    """Synopsys' name for what darknet does."""
    layer.type = "Upsample"
    layer.upsample_param.scale = max(layer.upsample_darknet_param.stride, 0)
    layer.ClearField("upsample_darknet_param")


def _is_of_happynear(layer: LayerParameter) -> bool:
    """Whether a Normalize is not SSD's: that has other settings, and one top."""
    given = layer.HasField("normalize_param") or layer.HasField("softmax_param")
    return given or len(layer.top) > 1


#: Layer types that there are in definitions only, and what says them as ours.
_FOREIGN: dict[str, Callable[[LayerParameter], None]] = {
    "Convolution3D": _say_over_time,
    "Deconvolution3D": _say_over_time,
    "NdConvolution": _say_by_shapes,
    "UpsampleDarknet": _say_upsampled,
}
READ_AS_OTHERS = frozenset(_FOREIGN)
#: These and those with settings of forks.
_SAYING = _FOREIGN | {
    "Convolution": _say_holes,
    "ReLU": _say_relu6,
    "Reshape": _say_shuffled,
}
#: Layer types that are different layers by one name: when they are the other, and its type here.
_KINDS: dict[str, tuple[Callable[[LayerParameter], bool], str]] = {
    "VideoData": (
        lambda layer: any(map(layer.video_data_param.HasField, _OF_SEGMENTS)),
        "VideoSegments",
    ),
    "Normalize": (_is_of_happynear, "NormalizeChannels"),
    "InnerProduct": (lambda layer: layer.inner_product_param.normalize, "NormalizedInnerProduct"),
    "BatchNorm": (
        lambda layer: not layer.batch_norm_param.add_eps_before_sqrt,
        "DarknetBatchNorm",
    ),
    "DetectionOutput": (
        lambda layer: layer.detection_output_param.no_permute,
        "DetectionOutputOfMaps",
    ),
}
