"""Layers as stock Caffe and other readers of its files know them.

Layers of the surgery forks become the standard types, and so do layers of other forks that have an
equivalent. Masks must have been applied to the weights already.
"""

from __future__ import annotations

from google.protobuf.message import Message

from caffe_dns.layers.forks.batch_norm import is_segnet
from caffe_dns.proto.caffe_pb2 import FillerParameter, LayerParameter, PoolingParameter
from caffe_dns.proto.fields import is_repeated

_STANDARD_TYPES = {
    "CConvolution": "Convolution",
    "CInnerProduct": "InnerProduct",
    "DepthwiseConvolution": "Convolution",
    "ConvolutionDepthwise": "Convolution",
}
#: Types that may have masks behind weight and bias, and where they say whether there is a bias.
_WITH_MASKS = {
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "InnerProduct": "inner_product_param",
}
_SURGERY_FIELDS = {
    "cconvolution_param": (),
    "cinner_product_param": (),
    "convolution_param": ("sparsity_term", "weight_mask_filler", "threshold"),
    "inner_product_param": ("sparsity_term", "weight_mask_filler", "threshold"),
}
#: Where an axis has an older name, which few readers but Caffe know: OpenCV passes over it.
_OLD_AXES = {"concat_param": "concat_dim", "slice_param": "slice_dim"}
#: Settings that only building and training a net need.
_TRAINING_FIELDS = (
    "phase",
    "loss_weight",
    "propagate_down",
    "include",
    "exclude",
    "transform_param",
    "blobs",
)


def standard_layer(layer: LayerParameter) -> LayerParameter:
    """A copy of the standard type, without surgery, fillers, rates, phase rules and blobs."""
    plain = without_surgery(layer)
    if is_segnet(layer.bn_param):
        # Without its fillers it would be taken for PSPNet's.
        plain.bn_param.bn_mode = layer.bn_param.bn_mode
    for name in _TRAINING_FIELDS:
        plain.ClearField(name)
    for name, old in _OLD_AXES.items():
        settings = getattr(plain, name)
        if settings.HasField(old):
            settings.axis = getattr(settings, old)
            settings.ClearField(old)
    if plain.type == "LRN":
        # Said aloud, for OpenCV takes another number where there is none.
        plain.lrn_param.alpha = plain.lrn_param.alpha
    for _, value in plain.ListFields():
        if isinstance(value, Message):
            _clear_fillers(value)
    _keep_shared_names(plain)
    return plain


def without_surgery(layer: LayerParameter) -> LayerParameter:
    """A copy of the standard type that has no masks, nor a `param {}` for them."""
    plain = LayerParameter()
    plain.CopyFrom(layer)
    plain.type = _STANDARD_TYPES.get(layer.type, layer.type)
    if layer.type == "ConvolutionDepthwise":
        plain.convolution_param.group = layer.convolution_param.num_output
    if layer.type == "Dropout" and not layer.dropout_param.scale_train:
        # A test pass multiplies, which stock Caffe's Dropout does not.
        plain.type = "Power"
        plain.ClearField("dropout_param")
        plain.power_param.scale = 1 - layer.dropout_param.dropout_ratio
    if layer.pooling_param.HasField("ceil_mode"):
        plain.pooling_param.ClearField("ceil_mode")
        if not layer.pooling_param.ceil_mode:
            plain.pooling_param.round_mode = PoolingParameter.FLOOR
    for name, fields in _SURGERY_FIELDS.items():
        if plain.HasField(name):
            settings = getattr(plain, name)
            for field in fields:
                settings.ClearField(field)
            if not fields or not settings.ByteSize():
                plain.ClearField(name)
    if plain.type in _WITH_MASKS:
        settings = getattr(plain, _WITH_MASKS[plain.type])
        del plain.param[2 if settings.bias_term else 1 :]
    return plain


def _clear_fillers(settings: Message) -> None:
    """Drop the fillers; a bilinear one stays, as it makes weights that are never learned."""
    for field, value in settings.ListFields():
        is_filler = not is_repeated(field) and isinstance(value, FillerParameter)
        if is_filler and value.type != "bilinear":
            settings.ClearField(field.name)


def _keep_shared_names(layer: LayerParameter) -> None:
    """Of `param {}`, keep what tells which blobs are shared."""
    names = [(spec.name, spec.share_mode) for spec in layer.param]
    del layer.param[:]
    while names and not names[-1][0]:
        names.pop()
    for name, mode in names:
        spec = layer.param.add()
        if name:
            spec.name = name
            if mode:
                spec.share_mode = mode
