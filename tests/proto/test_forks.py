from pathlib import Path

import pytest

from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.forks import _FORKS, foreign_field
from caffe_dns.proto.text import read_binary, read_text
from tests.oracle import GOLDEN


def test_fields_of_forks_are_named_with_all_that_have_them() -> None:
    assert foreign_field("LayerParameter", "multibox_loss_param") == "SSD"
    assert foreign_field("LayerParameter", "roi_pooling_param") == "Faster R-CNN"
    assert foreign_field("LayerParameter", "upsample_param") == "SegNet and ENet"
    assert foreign_field("BatchNormParameter", "engine") == "NVCaffe and Intel Caffe"
    assert foreign_field("LayerParameter", "engine_param") is None
    assert foreign_field("NetParameter", "multibox_loss_param") is None


def test_no_field_of_ours_is_called_foreign() -> None:
    from caffe_dns.proto import caffe_pb2

    for messages in _FORKS.values():
        for message, fields in messages.items():
            ours = caffe_pb2.DESCRIPTOR.message_types_by_name[message].fields_by_name
            assert not set(fields.split()) & set(ours)


@pytest.mark.parametrize("run", ["surgery_guo", "surgery_guo_iter_stop"])
@pytest.mark.parametrize("model", ["init", "snap_iter_40"])
def test_settings_of_the_official_surgery_layers_come_back(run: str, model: str) -> None:
    folder = GOLDEN / "runs" / run
    definition = read_text(folder / "train_val.prototxt", NetParameter).message
    expected = {layer.name: layer for layer in definition.layer}
    masked = 0
    for layer in read_binary(folder / f"{model}.caffemodel", NetParameter).layer:
        assert not layer.HasField("elu_param")
        assert not layer.HasField("bias_param")
        assert layer.cconvolution_param == expected[layer.name].cconvolution_param
        assert layer.cinner_product_param == expected[layer.name].cinner_product_param
        masked += layer.HasField("cconvolution_param") + layer.HasField("cinner_product_param")
    assert masked == 4


def test_layers_of_other_types_keep_elu_and_bias_settings(tmp_path: Path) -> None:
    net = NetParameter()
    net.layer.add(type="ELU").elu_param.alpha = 0.5
    net.layer.add(type="Bias").bias_param.axis = 2
    net.layer.add(type="CConvolution").cconvolution_param.c_rate = 2
    path = tmp_path / "net.caffemodel"
    path.write_bytes(net.SerializeToString())
    assert read_binary(path, NetParameter) == net
