"""What forks call otherwise: Caffe's convolutions, and different layers by one name."""

from __future__ import annotations

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import ConvolutionParameter, LayerParameter

#: Layer types that have a value for time and one for height and width (C3D).
_OVER_TIME = {"Convolution3D": "Convolution", "Deconvolution3D": "Deconvolution"}
#: What tells TSN's VideoData from that of C3D and video-caffe.
_OF_SEGMENTS = ("num_segments", "modality", "name_pattern", "grayscale")
#: The one that has its values as shapes (video-caffe).
_BY_SHAPES = "NdConvolution"
#: Layer types that there are in definitions only.
READ_AS_OTHERS = frozenset((*_OVER_TIME, _BY_SHAPES, "UpsampleDarknet"))
#: What Caffe's convolutions have for an axis at most.
_MOST = 2**31 - 1


def say_as_ours(layer: LayerParameter) -> None:
    """Turn a layer of a fork into what it is here, in place.

    These are layers of C3D, video-caffe, TSN, happynear's fork and Synopsys'. What is left out by
    a definition stays so, and building the layer complains of it. Raises CaffeError for
    values by shapes that Caffe's convolutions cannot have.
    """
    if layer.type in _OVER_TIME:
        layer.type = _OVER_TIME[layer.type]
        if layer.HasField("convolution3d_param"):
            layer.convolution_param.CopyFrom(layer.convolution3d_param)
            layer.ClearField("convolution3d_param")
        _merge_time(layer.convolution_param)
    elif layer.type == _BY_SHAPES:
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
    elif layer.type == "VideoData" and any(map(layer.video_data_param.HasField, _OF_SEGMENTS)):
        layer.type = "VideoSegments"
    elif layer.type == "Normalize" and _is_of_happynear(layer):
        layer.type = "NormalizeChannels"
    elif layer.type == "InnerProduct" and layer.inner_product_param.normalize:
        layer.type = "NormalizedInnerProduct"
    elif layer.type == "ReLU" and layer.relu_param.relu6:
        layer.type = "ReLU6"
        layer.relu6_param.CopyFrom(layer.relu_param)
        layer.relu6_param.ClearField("relu6")
        layer.ClearField("relu_param")
    elif layer.type == "Reshape" and layer.reshape_param.pixelshuffler != 1:
        layer.type = "DepthToSpace"
        layer.depth_to_space_param.block_size = layer.reshape_param.pixelshuffler
        layer.depth_to_space_param.data_format = "CRD"
        layer.ClearField("reshape_param")
    elif layer.type == "BatchNorm" and not layer.batch_norm_param.add_eps_before_sqrt:
        layer.type = "DarknetBatchNorm"
    elif layer.type == "DetectionOutput" and layer.detection_output_param.no_permute:
        layer.type = "DetectionOutputOfMaps"
    elif layer.type == "UpsampleDarknet":
        layer.type = "Upsample"
        layer.upsample_param.scale = max(layer.upsample_darknet_param.stride, 0)
        layer.ClearField("upsample_darknet_param")


def _is_of_happynear(layer: LayerParameter) -> bool:
    """Whether a Normalize is not SSD's: that has other settings, and one top."""
    given = layer.HasField("normalize_param") or layer.HasField("softmax_param")
    return given or len(layer.top) > 1


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
