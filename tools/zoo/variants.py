"""What is made of a definition for training: nets in, nets out, the argument untouched."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from caffe_dns.proto.caffe_pb2 import (
    BlobShape,
    CConvolutionParameter,
    ConvolutionParameter,
    DummyDataParameter,
    InnerProductParameter,
    LayerParameter,
    NetParameter,
    ParamSpec,
)
from tools.zoo.builder import constant, gaussian

#: Thresholds of surgery by standard deviation: the defaults of their layer types.
THRESHOLDS = {"Convolution": 0.6, "InnerProduct": 1.281}
DATA = ("Data", "AnnotatedData")
MASK = ParamSpec(lr_mult=0, decay_mult=0)


def prune(net: NetParameter, dense: Collection[str] = ()) -> NetParameter:
    """Surgery by standard deviation on every weight but those of the layers named in `dense`."""
    pruned = _copy(net)
    for layer in pruned.layer:
        if layer.type not in THRESHOLDS:
            continue
        settings = _weight_settings(layer)
        if layer.name in dense:
            settings.sparsity_term = False
        else:
            layer.param.append(MASK)
            settings.threshold = THRESHOLDS[layer.type]
    return pruned


def official(net: NetParameter, c_rates: Mapping[str, float], iter_stop: int) -> NetParameter:
    """The official surgery on the layers in `c_rates`, up to iteration `iter_stop`."""
    pruned = _copy(net)
    for layer in pruned.layer:
        if layer.name not in c_rates:
            continue
        layer.param.extend((MASK, MASK))
        settings = CConvolutionParameter(
            gamma=0.0001, power=1, c_rate=c_rates[layer.name], iter_stop=iter_stop
        )
        field = "cconvolution_param" if layer.type == "Convolution" else "cinner_product_param"
        # The two messages have the same fields.
        getattr(layer, field).MergeFromString(settings.SerializeToString())
        layer.type = f"C{layer.type}"
    return pruned


def deploy(net: NetParameter, classifier: str, shape: tuple[int, ...]) -> NetParameter:
    """Without data and losses: `data`, of this shape, in; `prob`, the classes by softmax, out."""
    result = deploy_to(net, classifier, shape)
    result.layer.add(name="prob", type="Softmax", bottom=[classifier], top=["prob"])
    return result


def deploy_to(net: NetParameter, output: str, shape: tuple[int, ...]) -> NetParameter:
    """The layers that make the blob `output` of `data`, which is an input of this shape."""
    needed = {output}
    kept: list[LayerParameter] = []
    for layer in reversed(_copy(net).layer):
        if layer.type not in DATA and needed.intersection(layer.top):
            needed.update(layer.bottom)
            kept.append(_without_training(layer))
    result = NetParameter(name=net.name)
    data = result.layer.add(name="data", type="Input", top=["data"])
    data.input_param.shape.append(BlobShape(dim=shape))
    result.layer.extend(reversed(kept))
    return result


def dummy(net: NetParameter, shape: tuple[int, ...]) -> NetParameter:
    """On random pixels of this shape, all of class 0, instead of a database."""
    result = NetParameter(name=net.name)
    data = result.layer.add(name="data", type="DummyData", top=["data", "label"])
    data.dummy_data_param.CopyFrom(
        DummyDataParameter(
            shape=[BlobShape(dim=shape), BlobShape(dim=shape[:1])],
            data_filler=[gaussian(1), constant(0)],
        )
    )
    result.layer.extend(layer for layer in net.layer if layer.type != "Data")
    return result


def _copy(net: NetParameter) -> NetParameter:
    copy = NetParameter()
    copy.CopyFrom(net)
    return copy


def _weight_settings(layer: LayerParameter) -> ConvolutionParameter | InnerProductParameter:
    """The message with the layer's fillers and its mask's settings."""
    return layer.convolution_param if layer.type == "Convolution" else layer.inner_product_param


def _without_training(layer: LayerParameter) -> LayerParameter:
    layer.ClearField("param")
    layer.ClearField("include")
    if layer.type in THRESHOLDS:
        settings = _weight_settings(layer)
        settings.ClearField("weight_filler")
        settings.ClearField("bias_filler")
    return layer
