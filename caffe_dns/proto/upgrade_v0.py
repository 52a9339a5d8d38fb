"""Upgrades definitions of 2013 (V0LayerParameter) to those of 2014 (V1LayerParameter).

In a V0 net, all settings of a layer are in one flat message inside an entry of `layers`, and
padding is a layer of its own. Restates `UpgradeV0Net` of `util/upgrade_proto.cpp`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.errors import CaffeError, nearest
from caffe_dns.proto.caffe_pb2 import NetParameter, V0LayerParameter, V1LayerParameter
from caffe_dns.proto.fields import is_repeated

_LAYER_TYPES = {
    "accuracy": V1LayerParameter.ACCURACY,
    "bnll": V1LayerParameter.BNLL,
    "concat": V1LayerParameter.CONCAT,
    "conv": V1LayerParameter.CONVOLUTION,
    "data": V1LayerParameter.DATA,
    "dropout": V1LayerParameter.DROPOUT,
    "euclidean_loss": V1LayerParameter.EUCLIDEAN_LOSS,
    "flatten": V1LayerParameter.FLATTEN,
    "hdf5_data": V1LayerParameter.HDF5_DATA,
    "hdf5_output": V1LayerParameter.HDF5_OUTPUT,
    "im2col": V1LayerParameter.IM2COL,
    "images": V1LayerParameter.IMAGE_DATA,
    "infogain_loss": V1LayerParameter.INFOGAIN_LOSS,
    "innerproduct": V1LayerParameter.INNER_PRODUCT,
    "lrn": V1LayerParameter.LRN,
    "multinomial_logistic_loss": V1LayerParameter.MULTINOMIAL_LOGISTIC_LOSS,
    "pool": V1LayerParameter.POOLING,
    "relu": V1LayerParameter.RELU,
    "sigmoid": V1LayerParameter.SIGMOID,
    "softmax": V1LayerParameter.SOFTMAX,
    "softmax_loss": V1LayerParameter.SOFTMAX_LOSS,
    "split": V1LayerParameter.SPLIT,
    "tanh": V1LayerParameter.TANH,
    "window_data": V1LayerParameter.WINDOW_DATA,
}

#: The message of V1LayerParameter that took over the settings of a V0 layer type.
_PARAMS = {
    "conv": "convolution_param",
    "innerproduct": "inner_product_param",
    "pool": "pooling_param",
    "dropout": "dropout_param",
    "lrn": "lrn_param",
    "data": "data_param",
    "hdf5_data": "hdf5_data_param",
    "images": "image_data_param",
    "window_data": "window_data_param",
    "infogain_loss": "infogain_loss_param",
    "concat": "concat_param",
}

#: V0 field -> its name in those messages, and the V0 layer types that have it.
_FIELDS = {
    "num_output": ("num_output", ("conv", "innerproduct")),
    "biasterm": ("bias_term", ("conv", "innerproduct")),
    "weight_filler": ("weight_filler", ("conv", "innerproduct")),
    "bias_filler": ("bias_filler", ("conv", "innerproduct")),
    "pad": ("pad", ("conv", "pool")),
    "kernelsize": ("kernel_size", ("conv", "pool")),
    "group": ("group", ("conv",)),
    "stride": ("stride", ("conv", "pool")),
    "pool": ("pool", ("pool",)),
    "dropout_ratio": ("dropout_ratio", ("dropout",)),
    "local_size": ("local_size", ("lrn",)),
    "alpha": ("alpha", ("lrn",)),
    "beta": ("beta", ("lrn",)),
    "k": ("k", ("lrn",)),
    "source": ("source", ("data", "hdf5_data", "images", "window_data", "infogain_loss")),
    "batchsize": ("batch_size", ("data", "hdf5_data", "images", "window_data")),
    "rand_skip": ("rand_skip", ("data", "images")),
    "shuffle_images": ("shuffle", ("images",)),
    "new_height": ("new_height", ("images",)),
    "new_width": ("new_width", ("images",)),
    "concat_dim": ("concat_dim", ("concat",)),
    "det_fg_threshold": ("fg_threshold", ("window_data",)),
    "det_bg_threshold": ("bg_threshold", ("window_data",)),
    "det_fg_fraction": ("fg_fraction", ("window_data",)),
    "det_context_pad": ("context_pad", ("window_data",)),
    "det_crop_mode": ("crop_mode", ("window_data",)),
}

#: V0 field -> its name in TransformationParameter; allowed in every layer type.
_TRANSFORM_FIELDS = {
    "scale": "scale",
    "meanfile": "mean_file",
    "cropsize": "crop_size",
    "mirror": "mirror",
}


def upgrade_v0_net(net: NetParameter) -> tuple[NetParameter, bool]:
    """The net with V1 layers, and whether every setting could be carried over.

    What could not is logged, one line each. Raises CaffeError for an unknown layer type and for
    padding that cannot be moved into the layer behind it.
    """
    upgraded = NetParameter(input=net.input, input_dim=net.input_dim)
    if net.HasField("name"):
        upgraded.name = net.name
    if net.HasField("force_backward"):
        upgraded.force_backward = net.force_backward
    compatible = True
    for layer in _without_padding_layers(net):
        compatible &= _upgrade_layer(layer, upgraded.layers.add())
    return upgraded, compatible


def is_padding(layer: V1LayerParameter) -> bool:
    """Whether this entry of a V0 net is a padding layer, which goes in the upgrade."""
    return layer.layer.type == "padding"


def _without_padding_layers(net: NetParameter) -> list[V1LayerParameter]:
    """The layers with each padding layer merged into its readers (`UpgradeV0PaddingLayers`)."""
    kept = []
    producers: dict[str, V1LayerParameter | None] = dict.fromkeys(net.input)
    for layer in net.layers:
        upgraded = V1LayerParameter()
        upgraded.CopyFrom(layer)
        for index, blob in enumerate(layer.bottom):
            if blob not in producers:
                raise CaffeError(f"unknown bottom blob '{blob}'", layer=layer.layer.name)
            source = producers[blob]
            if source is not None and is_padding(source):
                _check_padding(layer, source)
                upgraded.layer.pad = source.layer.pad
                upgraded.bottom[index] = source.bottom[0]
        producers.update(dict.fromkeys(layer.top, layer))
        if not is_padding(layer):
            kept.append(upgraded)
    return kept


def _check_padding(layer: V1LayerParameter, padding: V1LayerParameter) -> None:
    problem = None
    if layer.layer.type not in ("conv", "pool"):
        problem = f"a padding layer can feed conv and pool layers only, not '{layer.layer.type}'"
    elif len(layer.bottom) != 1:
        problem = "a layer behind a padding layer takes a single blob"
    elif len(padding.bottom) != 1 or len(padding.top) != 1:
        problem = f"the padding layer '{padding.layer.name}' takes and makes a single blob"
    if problem is not None:
        raise CaffeError(problem, layer=layer.layer.name)


def _upgrade_layer(old: V1LayerParameter, new: V1LayerParameter) -> bool:
    """Fill `new`; False when a setting was left behind (`UpgradeV0LayerParameter`)."""
    new.bottom.extend(old.bottom)
    new.top.extend(old.top)
    if not old.HasField("layer"):
        return True
    v0 = old.layer
    if v0.HasField("name"):
        new.name = v0.name
    if v0.HasField("type"):
        if v0.type not in _LAYER_TYPES:
            near = nearest(v0.type, list(_LAYER_TYPES))
            raise CaffeError(f"unknown V0 layer type '{v0.type}'{near}", layer=v0.name)
        new.type = _LAYER_TYPES[v0.type]
    new.blobs.extend(v0.blobs)
    new.blobs_lr.extend(v0.blobs_lr)
    new.weight_decay.extend(v0.weight_decay)
    for name, new_name in _TRANSFORM_FIELDS.items():
        if v0.HasField(name):
            _put(new.transform_param, new_name, getattr(v0, name))
    return _upgrade_settings(v0, new)


def _upgrade_settings(v0: V0LayerParameter, new: V1LayerParameter) -> bool:
    compatible = True
    for name, (new_name, types) in _FIELDS.items():
        if not v0.HasField(name):
            continue
        if v0.type in types:
            _put(getattr(new, _PARAMS[v0.type]), new_name, getattr(v0, name))
        else:
            compatible = _unknown(name, v0)
    if v0.HasField("hdf5_output_param"):
        if v0.type == "hdf5_output":
            new.hdf5_output_param.CopyFrom(v0.hdf5_output_param)
        else:
            compatible = _unknown("hdf5_output_param", v0)
    return compatible


def _unknown(name: str, v0: V0LayerParameter) -> bool:
    # Caffe reports shuffle_images under its new name.
    shown = "shuffle" if name == "shuffle_images" else name
    log.error(f"Unknown parameter {shown} for layer type {v0.type}")
    return False


def _put(message: Message, name: str, value: Any) -> None:
    field = message.DESCRIPTOR.fields_by_name[name]
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif is_repeated(field):
        getattr(message, name).append(value)
    else:
        setattr(message, name, value)
