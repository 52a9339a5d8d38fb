"""Upgrades definitions of 2014 (V1LayerParameter, `layers`) to LayerParameter (`layer`).

Restates `UpgradeV1Net` and `UpgradeNetDataTransformation` of `util/upgrade_proto.cpp`.
"""

from __future__ import annotations

from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter, ParamSpec, V1LayerParameter

_LAYER_TYPES = {
    V1LayerParameter.NONE: "",
    V1LayerParameter.ABSVAL: "AbsVal",
    V1LayerParameter.ACCURACY: "Accuracy",
    V1LayerParameter.ARGMAX: "ArgMax",
    V1LayerParameter.BNLL: "BNLL",
    V1LayerParameter.CONCAT: "Concat",
    V1LayerParameter.CONTRASTIVE_LOSS: "ContrastiveLoss",
    V1LayerParameter.CONVOLUTION: "Convolution",
    V1LayerParameter.DECONVOLUTION: "Deconvolution",
    V1LayerParameter.DATA: "Data",
    V1LayerParameter.DROPOUT: "Dropout",
    V1LayerParameter.DUMMY_DATA: "DummyData",
    V1LayerParameter.EUCLIDEAN_LOSS: "EuclideanLoss",
    V1LayerParameter.ELTWISE: "Eltwise",
    V1LayerParameter.EXP: "Exp",
    V1LayerParameter.FLATTEN: "Flatten",
    V1LayerParameter.HDF5_DATA: "HDF5Data",
    V1LayerParameter.HDF5_OUTPUT: "HDF5Output",
    V1LayerParameter.HINGE_LOSS: "HingeLoss",
    V1LayerParameter.IM2COL: "Im2col",
    V1LayerParameter.IMAGE_DATA: "ImageData",
    V1LayerParameter.INFOGAIN_LOSS: "InfogainLoss",
    V1LayerParameter.INNER_PRODUCT: "InnerProduct",
    V1LayerParameter.LRN: "LRN",
    V1LayerParameter.MEMORY_DATA: "MemoryData",
    V1LayerParameter.MULTINOMIAL_LOGISTIC_LOSS: "MultinomialLogisticLoss",
    V1LayerParameter.MVN: "MVN",
    V1LayerParameter.POOLING: "Pooling",
    V1LayerParameter.POWER: "Power",
    V1LayerParameter.RELU: "ReLU",
    V1LayerParameter.SIGMOID: "Sigmoid",
    V1LayerParameter.SIGMOID_CROSS_ENTROPY_LOSS: "SigmoidCrossEntropyLoss",
    V1LayerParameter.SILENCE: "Silence",
    V1LayerParameter.SOFTMAX: "Softmax",
    V1LayerParameter.SOFTMAX_LOSS: "SoftmaxWithLoss",
    V1LayerParameter.SPLIT: "Split",
    V1LayerParameter.SLICE: "Slice",
    V1LayerParameter.TANH: "TanH",
    V1LayerParameter.WINDOW_DATA: "WindowData",
    V1LayerParameter.THRESHOLD: "Threshold",
    V1LayerParameter.CONVOLUTION3D: "Convolution3D",
    V1LayerParameter.POOLING3D: "Pooling3D",
    V1LayerParameter.DECONVOLUTION3D: "Deconvolution3D",
    V1LayerParameter.VIDEO_DATA: "VideoData",
}

_SHARE_MODES = {
    V1LayerParameter.STRICT: ParamSpec.STRICT,
    V1LayerParameter.PERMISSIVE: ParamSpec.PERMISSIVE,
}

#: Repeated fields that kept their names.
_LISTS = ("bottom", "top", "include", "exclude", "blobs", "loss_weight")

#: The messages with the settings of each layer type; all kept their names.
_SETTINGS = tuple(
    field.name
    for field in V1LayerParameter.DESCRIPTOR.fields
    if field.name.endswith("_param") and field.name in LayerParameter.DESCRIPTOR.fields_by_name
)

#: Layer types whose own message once held the settings of transform_param.
_DATA_PARAMS = {
    V1LayerParameter.DATA: "data_param",
    V1LayerParameter.IMAGE_DATA: "image_data_param",
    V1LayerParameter.WINDOW_DATA: "window_data_param",
    V1LayerParameter.VIDEO_DATA: "image_data_param",
}
_TRANSFORM_FIELDS = ("scale", "mean_file", "crop_size", "mirror")


def needs_data_upgrade(net: NetParameter) -> bool:
    """Whether a data layer has transformation settings of its own (`NetNeedsDataUpgrade`)."""
    return any(_old_transform_fields(layer) for layer in net.layers)


def upgrade_data_transformation(net: NetParameter) -> None:
    """Move the transformation settings of the data layers to their transform_param."""
    for layer in net.layers:
        if layer.type not in _DATA_PARAMS:
            continue
        settings = getattr(layer, _DATA_PARAMS[layer.type])
        # Caffe leaves both messages behind in every data layer of such a net, also empty ones.
        settings.SetInParent()
        layer.transform_param.SetInParent()
        for name in _old_transform_fields(layer):
            setattr(layer.transform_param, name, getattr(settings, name))
            settings.ClearField(name)


def _old_transform_fields(layer: V1LayerParameter) -> list[str]:
    if layer.type not in _DATA_PARAMS:
        return []
    settings: Message = getattr(layer, _DATA_PARAMS[layer.type])
    return [name for name in _TRANSFORM_FIELDS if settings.HasField(name)]


def upgrade_v1_net(net: NetParameter) -> tuple[NetParameter, bool]:
    """The net with `layer` instead of `layers`, and whether everything could be carried over.

    Raises CaffeError when the net has both.
    """
    if net.layer:
        raise CaffeError(
            "the net has both 'layer' and 'layers' entries; "
            'write all of them as layer { type: "Type" ... }',
            field="layers",
        )
    upgraded = NetParameter()
    compatible = True
    for index, old in enumerate(net.layers):
        _upgrade_layer(old, upgraded.layer.add())
        if old.HasField("layer"):
            log.error("Input NetParameter has V0 layer -- ignoring.")
            log.error(f"Upgrade of input layer {index} failed.")
            compatible = False
    net.ClearField("layers")
    upgraded.MergeFrom(net)
    return upgraded, compatible


def _upgrade_layer(old: V1LayerParameter, new: LayerParameter) -> None:
    """Fill `new` (`UpgradeV1LayerParameter`)."""
    for name in _LISTS:
        getattr(new, name).extend(getattr(old, name))
    if old.HasField("name"):
        new.name = old.name
    if old.HasField("type"):
        new.type = _LAYER_TYPES[old.type]
    for index, name in enumerate(old.param):
        _param_spec(new, index).name = name
    for index, mode in enumerate(old.blob_share_mode):
        _param_spec(new, index).share_mode = _SHARE_MODES[mode]
    for index, lr_mult in enumerate(old.blobs_lr):
        _param_spec(new, index).lr_mult = lr_mult
    for index, decay_mult in enumerate(old.weight_decay):
        _param_spec(new, index).decay_mult = decay_mult
    for name in _SETTINGS:
        if old.HasField(name):
            getattr(new, name).CopyFrom(getattr(old, name))


def _param_spec(layer: LayerParameter, index: int) -> ParamSpec:
    """The entry `index` of the layer's `param`, made where it is missing."""
    while len(layer.param) <= index:
        layer.param.add()
    return layer.param[index]
