"""Makes `import caffe` work for code that was written for pycaffe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_PACKAGE = "caffe_dns.pycaffe"
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


class _Caffe(MetaPathFinder, Loader):
    """Makes `import caffe` import this package, together with modules that forks have added.

    Programs of SSD's family import `caffe.model_libs`, which is in their own folder `caffe`. As in
    pycaffe, GLOG_minloglevel counts as it is when caffe is imported: programs set it in a line
    before that, when this package has long been loaded.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "caffe":
            return ModuleSpec(fullname, self, is_package=True)
        if fullname.rpartition(".")[0] != "caffe":
            return None
        return PathFinder.find_spec(fullname, [str(Path(folder, "caffe")) for folder in sys.path])

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        package = import_module(_PACKAGE)
        self._own_spec = package.__spec__
        return package

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._own_spec
        module.heed_environment()


def install_as_caffe() -> None:
    """Make `import caffe` import this package from now on, in the whole process.

    A caffe that was imported before is not replaced. Modules of a fork's package that this one
    lacks are imported from the fork, if it is on `sys.path`.
    """
    if "caffe" in sys.modules or any(isinstance(finder, _Caffe) for finder in sys.meta_path):
        return
    # First, so that this package takes precedence; a fork's modules come after ours.
    sys.meta_path.insert(0, _Caffe())
    # Otherwise `import caffe.io` would create second copies of the modules.
    for name in _SUBMODULES:
        sys.modules[f"caffe.{name}"] = import_module(f"{_PACKAGE}.{name}")
    sys.modules["caffe.proto.caffe_pb2"] = import_module("caffe_dns.proto.caffe_pb2")
