"""caffe.NetSpec: definitions as expressions, against the same in prototxt."""

from __future__ import annotations

from pathlib import Path

import pytest

import caffe_dns.pycaffe as caffe
from caffe_dns import registry
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import layer_types
from caffe_dns.layers.neuron import ReLU
from caffe_dns.proto.caffe_pb2 import ConvolutionParameter, NetParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.pycaffe import layers as L
from caffe_dns.pycaffe import net_spec
from caffe_dns.pycaffe import params as P


def parsed(text: str) -> NetParameter:
    return parse_text(text, NetParameter).message


def test_named_tops() -> None:
    net = caffe.NetSpec()
    net.data, net.label = L.Data(
        source="db",
        backend=P.Data.LMDB,
        batch_size=8,
        ntop=2,
        transform_param={"scale": 0.5},
        include={"phase": caffe.TRAIN},
    )
    net.conv = L.Convolution(
        net.data,
        kernel_size=[3, 5],
        stride=2,
        num_output=4,
        weight_filler={"type": "gaussian", "std": 0.1},
        param=[{"lr_mult": 1}, {"lr_mult": 2, "decay_mult": 0}],
    )
    net["pool"] = L.Pooling(net["conv"], pool=P.Pooling.AVE, global_pooling=True)
    net.relu = L.ReLU(net.pool, in_place=True)
    net.ip = L.InnerProduct(net.relu, num_output=10, name="classes")
    net.loss = L.SoftmaxWithLoss(net.ip, net.label, loss_weight=2, loss_param={"ignore_label": 7})
    assert net.to_proto() == parsed("""
        layer { name: 'data' type: 'Data' top: 'data' top: 'label' include { phase: TRAIN }
          transform_param { scale: 0.5 }
          data_param { source: 'db' backend: LMDB batch_size: 8 } }
        layer { name: 'conv' type: 'Convolution' bottom: 'data' top: 'conv'
          param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
          convolution_param { kernel_size: 3 kernel_size: 5 stride: 2 num_output: 4
            weight_filler { type: 'gaussian' std: 0.1 } } }
        layer { name: 'pool' type: 'Pooling' bottom: 'conv' top: 'pool'
          pooling_param { pool: AVE global_pooling: true } }
        layer { name: 'relu' type: 'ReLU' bottom: 'pool' top: 'pool' }
        layer { name: 'classes' type: 'InnerProduct' bottom: 'pool' top: 'ip'
          inner_product_param { num_output: 10 } }
        layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'ip' bottom: 'label' top: 'loss'
          loss_weight: 2 loss_param { ignore_label: 7 } }""")


def test_numbered_tops() -> None:
    data, label = L.DummyData(shape=[{"dim": [2, 3]}, {"dim": 2}], ntop=2)
    one, two = (L.InnerProduct(data, num_output=n) for n in (4, 4))
    total = L.Eltwise(one, two)
    expected = parsed("""
        layer { name: 'DummyData1' type: 'DummyData' top: 'DummyData1' top: 'DummyData2'
          dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }
        layer { name: 'InnerProduct1' type: 'InnerProduct' bottom: 'DummyData1'
          top: 'InnerProduct1' inner_product_param { num_output: 4 } }
        layer { name: 'InnerProduct2' type: 'InnerProduct' bottom: 'DummyData1'
          top: 'InnerProduct2' inner_product_param { num_output: 4 } }
        layer { name: 'Eltwise1' type: 'Eltwise' bottom: 'InnerProduct1' bottom: 'InnerProduct2'
          top: 'Eltwise1' }""")
    assert total.to_proto() == expected
    loss = L.SoftmaxWithLoss(total, label)
    assert caffe.to_proto(total, loss).layer[-1].bottom == ["Eltwise1", "DummyData2"]


def test_layers_without_tops_and_of_surgery() -> None:
    net = caffe.NetSpec()
    net.data = L.Input(shape={"dim": [2, 3]})
    net.quiet = L.Silence(net.data, ntop=0)
    net.pruned = L.CInnerProduct(
        net.data, inner_product_param={"num_output": 5}, cinner_product_param={"c_rate": 1.5}
    )
    net.python = L.Python(net.data, module="user", layer="Times", param_str="3")
    assert net.to_proto() == parsed("""
        layer { name: 'data' type: 'Input' top: 'data' input_param { shape { dim: 2 dim: 3 } } }
        layer { name: 'quiet' type: 'Silence' bottom: 'data' }
        layer { name: 'pruned' type: 'CInnerProduct' bottom: 'data' top: 'pruned'
          inner_product_param { num_output: 5 } cinner_product_param { c_rate: 1.5 } }
        layer { name: 'python' type: 'Python' bottom: 'data' top: 'python'
          python_param { module: 'user' layer: 'Times' param_str: '3' } }""")


def test_nets_are_built_from_it() -> None:
    net = caffe.NetSpec()
    net.data = L.Input(shape={"dim": [2, 3, 8, 8]})
    net.conv = L.Convolution(net.data, num_output=4, kernel_size=3)
    Path("net.prototxt").write_text(str(net.to_proto()))
    assert caffe.Net("net.prototxt", caffe.TEST).blobs["conv"].shape == (2, 4, 6, 6)


def test_very_deep_nets() -> None:
    top = L.Input(shape={"dim": [1]})
    for _ in range(3000):
        top = L.ReLU(top)
    assert len(top.to_proto().layer) == 3001


def test_what_forks_have_added() -> None:
    """`keys`, `vals`, `update`, `del` and settings of Deconvolution, as in SSD's net_spec.py."""
    net = caffe.NetSpec()
    net.data = L.Input(shape={"dim": [1, 2, 4, 4]})
    net.up = L.Deconvolution(net.data, num_output=2, kernel_size=2, bias_term=False)
    net.off = L.Silence(net.data, ntop=0)
    net.gone = L.ReLU(net.data)
    del net["gone"]
    assert net.keys() == ["data", "up", "off"]
    assert net.vals() == [net.data, net.up, net.off]
    net.update("up", {"name": "upsampled", "kernel_size": 3})
    net.update("off", {"name": "silence"})
    layers = net.to_proto().layer
    assert [each.name for each in layers] == ["data", "upsampled", "silence"]
    assert layers[1].convolution_param == ConvolutionParameter(
        num_output=2, kernel_size=[3], bias_term=False
    )


def test_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"Silence input 0 is not a Top \(type is <class 'tuple'>"):
        L.Silence(L.DummyData(ntop=2), ntop=0)
    net = caffe.NetSpec()
    with pytest.raises(AttributeError, match="nothing has been assigned to 'data' yet"):
        net.conv = L.Convolution(net.data)
    net.data = L.Input(shap={"dim": 1})
    with pytest.raises(CaffeError) as caught:
        net.to_proto()
    assert str(caught.value) == (
        "layer 'data': LayerParameter has no field 'shap' (did you mean 'shape'?)"
    )
    net.data = L.Inputt(shape={"dim": 1})
    with pytest.raises(CaffeError) as caught:
        net.to_proto()
    assert str(caught.value) == (
        "layer 'data': LayerParameter has no field 'shape'; there is no layer type 'Inputt' "
        "(did you mean 'Input'?)"
    )
    # Of a type that a plugin has, which is not loaded before.
    with monkeypatch.context() as patch:
        patch.setattr(layer_types, "_entries", dict(layer_types._entries))
        patch.setattr(registry, "load_installed", lambda: layer_types.add("Inputt", ReLU))
        with pytest.raises(CaffeError) as caught:
            net.to_proto()
    assert str(caught.value) == "layer 'data': LayerParameter has no field 'shape'"
    net.data = L.Input(shape={"dims": 1})
    with pytest.raises(CaffeError) as caught:
        net.to_proto()
    assert str(caught.value) == (
        "layer 'data': BlobShape has no field 'dims' (did you mean 'dim'?)"
    )
    net.data = L.Pooling(pool="MAXIMUM")
    with pytest.raises(CaffeError, match="layer 'data': pool: does not take 'MAXIMUM'"):
        net.to_proto()
    with pytest.raises(AttributeError, match="no message PoolParameter"):
        P.Pool.MAX  # noqa: B018


def test_names_of_messages() -> None:
    names = net_spec.param_name_dict()
    assert names["InnerProduct"] == "inner_product" and names["HDF5Data"] == "hdf5_data"
    # Forks have more fields with messages of Caffe, as Convolution3D and ReLU6.
    assert names["Convolution"] == "convolution" and names["ReLU"] == "relu"
