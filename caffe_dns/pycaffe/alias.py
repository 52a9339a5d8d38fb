"""`import caffe` for code that was written for pycaffe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

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


class _ModulesOfForks(MetaPathFinder):
    """What a fork has added to its package: what is missing in ours, from folders `caffe`.

    Those of SSD's family import `caffe.model_libs`, which lies where Python finds their own caffe.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.rpartition(".")[0] != "caffe":
            return None
        return PathFinder.find_spec(fullname, [str(Path(folder, "caffe")) for folder in sys.path])


def install_as_caffe() -> None:
    """From now on `import caffe` gives this package, in the whole process.

    A caffe that the program has imported before stays what it is. Modules of a fork's package that
    are missing in this one are imported from where that lies, if it is on `sys.path`.
    """
    if "caffe" in sys.modules:
        return
    package = import_module("caffe_dns.pycaffe")
    sys.meta_path.append(_ModulesOfForks())
    sys.modules["caffe"] = package
    # Else `import caffe.io` would make second copies of the modules.
    for name in _SUBMODULES:
        sys.modules[f"caffe.{name}"] = import_module(f"caffe_dns.pycaffe.{name}")
    sys.modules["caffe.proto.caffe_pb2"] = import_module("caffe_dns.proto.caffe_pb2")
