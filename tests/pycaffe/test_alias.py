"""`import caffe` for code that was written for pycaffe."""

from __future__ import annotations

from importlib import import_module

import pytest

import caffe_dns.pycaffe
from tests.processes import run_python


def test_import_caffe() -> None:
    with pytest.raises(ModuleNotFoundError):
        import_module("caffe")
    caffe_dns.pycaffe.install_as_caffe()
    caffe = import_module("caffe")
    assert caffe is caffe_dns.pycaffe
    assert import_module("caffe.io") is caffe.io
    assert import_module("caffe.proto").caffe_pb2 is caffe.proto.caffe_pb2
    assert import_module("caffe.proto.caffe_pb2").TRAIN == caffe.TRAIN == 0


def test_as_programs_write_it() -> None:
    program = """
import caffe_dns.pycaffe
caffe_dns.pycaffe.install_as_caffe()
import caffe
import caffe.io
from caffe import layers as L, params as P
from caffe.proto import caffe_pb2
net = caffe.NetSpec()
net.data = L.Input(shape=dict(dim=[1, 2]))
assert isinstance(net.to_proto(), caffe_pb2.NetParameter)
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
