"""`import caffe` for code that was written for pycaffe."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

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


def test_modules_that_a_fork_has_added(tmp_path: Path) -> None:
    package = tmp_path / "python" / "caffe"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('of the fork')")
    (package / "io.py").write_text("raise ImportError('of the fork')")
    (package / "model_libs.py").write_text(
        "from caffe import layers as L\n\ndef head(net):\n    net.head = L.ReLU(net.data)\n"
    )
    (package / "added").mkdir()
    (package / "added" / "__init__.py").write_text("")
    (tmp_path / "program.py").write_text(
        """
import sys
sys.path.insert(0, "python")
import caffe, caffe.io
from caffe.model_libs import *
net = caffe.NetSpec()
net.data = L.Input(shape=dict(dim=[1, 2]))
head(net)
print(caffe.model_libs.__name__, [layer.type for layer in net.to_proto().layer])
import caffe.added
try:
    import caffe.added.model_libs
except ModuleNotFoundError as error:
    print(error)
import caffe.no_such_module
"""
    )
    done = run_python("-m", "caffe_dns.pycaffe", "program.py", folder=tmp_path)
    assert done.stdout == (
        "caffe.model_libs ['Input', 'ReLU']\nNo module named 'caffe.added.model_libs'\n"
    )
    assert done.stderr.endswith("ModuleNotFoundError: No module named 'caffe.no_such_module'\n")


def test_the_log_level_is_the_one_at_the_import() -> None:
    program = """
import os
from caffe_dns.pycaffe import install_as_caffe
install_as_caffe()
install_as_caffe()
os.environ["GLOG_minloglevel"] = "2"
import caffe
caffe.log("not wanted")
os.environ["GLOG_minloglevel"] = "0"
import caffe.io
caffe.log("not wanted, either")
caffe.init_log(0)
caffe.log("wanted")
"""
    done = run_python("-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("] wanted\n")
    assert done.stderr.count("\n") == 1
