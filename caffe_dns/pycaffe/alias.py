"""`import caffe` for code that was written for pycaffe."""

from __future__ import annotations

import sys
from importlib import import_module

_SUBMODULES = (
    "_caffe",
    "classifier",
    "coord_map",
    "detector",
    "draw",
    "io",
    "net_spec",
    "proto",
    "pycaffe",
)


def install_as_caffe() -> None:
    """From now on `import caffe` gives this package, in the whole process.

    A caffe that the program has imported before stays what it is.
    """
    if "caffe" in sys.modules:
        return
    package = import_module("caffe_dns.pycaffe")
    sys.modules["caffe"] = package
    # Else `import caffe.io` would make second copies of the modules.
    for name in _SUBMODULES:
        sys.modules[f"caffe.{name}"] = import_module(f"caffe_dns.pycaffe.{name}")
    sys.modules["caffe.proto.caffe_pb2"] = import_module("caffe_dns.proto.caffe_pb2")
