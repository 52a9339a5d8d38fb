"""What pyproject.toml cannot say: the wheel also has the models and the proto."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithModels(build_py):
    """Copies models/ and proto/caffe.proto to where `dns models` and programs find them."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "caffe_dns"
        for file in [*sorted(Path("models").rglob("*")), Path("proto/caffe.proto")]:
            if file.suffix in (".prototxt", ".md", ".proto") and not _is_left_over(file):
                (package / file.parent).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, package / file)


def _is_left_over(file: Path) -> bool:
    """Whether training has left the file beside a model."""
    return any(word in file.name for word in ("_iter_", "_target_solver", "_pruned.", "_exported."))


setup(cmdclass={"build_py": BuildWithModels})
