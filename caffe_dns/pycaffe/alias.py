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
    """Gives this package to `import caffe`, and with it what forks have added to their own.

    Those of SSD's family import `caffe.model_libs`, which lies in the folder `caffe` where Python
    finds theirs. As in pycaffe, GLOG_minloglevel counts as it is when caffe is imported: programs
    set it in a line before that, when this package has long been loaded.
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
    """From now on `import caffe` gives this package, in the whole process.

    A caffe that the program has imported before stays what it is. Modules of a fork's package that
    are missing in this one are imported from where that lies, if it is on `sys.path`.
    """
    if "caffe" in sys.modules or any(isinstance(finder, _Caffe) for finder in sys.meta_path):
        return
    # First, so that it is this one where there is another; a fork's modules come after ours.
    sys.meta_path.insert(0, _Caffe())
    # Else `import caffe.io` would make second copies of the modules.
    for name in _SUBMODULES:
        sys.modules[f"caffe.{name}"] = import_module(f"{_PACKAGE}.{name}")
    sys.modules["caffe.proto.caffe_pb2"] = import_module("caffe_dns.proto.caffe_pb2")
