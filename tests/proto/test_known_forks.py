from collections.abc import Iterable

from caffe_dns.layers import layer_types
from caffe_dns.proto import caffe_pb2
from caffe_dns.proto.known_forks import (
    _INSTEAD,
    FIELDS,
    LAYER_TYPES,
    forks_with_field,
    forks_with_layer,
    instead,
)
from tests.nets import input_layer, layer, refused


def test_fields_of_forks_are_named_with_all_that_have_them() -> None:
    assert forks_with_field("VideoDataParameter", "video_file") == "SSD"
    assert forks_with_field("BatchNormParameter", "engine") == "NVCaffe and Intel Caffe"
    assert forks_with_field("LayerParameter", "engine_param") is None
    assert forks_with_field("NetParameter", "video_file") is None
    assert forks_with_field("LayerType", "MULTI_STAGE_MEANFIELD") == "CRF-RNN"


def test_no_field_and_no_layer_type_of_ours_is_called_foreign() -> None:
    for messages in FIELDS.values():
        for name, fields in messages.items():
            assert not set(fields.split()) & set(_ours(name))
    for types in LAYER_TYPES.values():
        assert not set(types.split()) & set(layer_types)


def _ours(name: str) -> Iterable[str]:
    """The fields of a message, or the values of an enum."""
    messages = caffe_pb2.DESCRIPTOR.message_types_by_name
    if name in messages:
        return messages[name].fields_by_name
    enums = {each.name: each for message in messages.values() for each in message.enum_types}
    return enums[name].values_by_name


def test_what_would_do_instead_is_said_of_what_is_foreign() -> None:
    fields = (field for each in FIELDS.values() for line in each.values() for field in line.split())
    foreign = {*fields, *(type for types in LAYER_TYPES.values() for type in types.split())}
    assert set(_INSTEAD) <= foreign
    assert instead("ReLUPooling") == "; a ReLU and a Pooling would do"
    assert instead("ReLUPoolin") == ""


def test_layer_types_of_forks_are_named() -> None:
    assert forks_with_layer("DetectionGroupLoss") == "MS-CNN"
    assert forks_with_layer("DetectionGroupLosss") is None
    net = input_layer(data=(1, 2)) + layer("out", "DetectionGroupLoss", "data", "out")
    assert (
        refused(net)
        == "layer 'out': 'DetectionGroupLoss' is a layer type of MS-CNN, which dns lacks"
    )
