from caffe_dns.layers import layer_types
from caffe_dns.proto import caffe_pb2
from caffe_dns.proto.known_forks import FIELDS, LAYER_TYPES, forks_with_field, forks_with_layer
from tests.nets import input_layer, layer, refused


def test_fields_of_forks_are_named_with_all_that_have_them() -> None:
    assert forks_with_field("VideoDataParameter", "video_file") == "SSD"
    assert forks_with_field("BatchNormParameter", "engine") == "NVCaffe and Intel Caffe"
    assert forks_with_field("LayerParameter", "engine_param") is None
    assert forks_with_field("NetParameter", "video_file") is None


def test_no_field_and_no_layer_type_of_ours_is_called_foreign() -> None:
    for messages in FIELDS.values():
        for message, fields in messages.items():
            ours = caffe_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name
            assert not set(fields.split()) & set(ours)
    for types in LAYER_TYPES.values():
        assert not set(types.split()) & set(layer_types)


def test_layer_types_of_forks_are_named() -> None:
    assert forks_with_layer("DetectionGroupLoss") == "MS-CNN"
    assert forks_with_layer("DetectionGroupLosss") is None
    net = input_layer(data=(1, 2)) + layer("out", "DetectionGroupLoss", "data", "out")
    assert (
        refused(net)
        == "layer 'out': 'DetectionGroupLoss' is a layer type of MS-CNN, which dns lacks"
    )
