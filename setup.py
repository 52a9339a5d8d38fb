"""What pyproject.toml cannot say: what else a wheel has, and an editable installation has not."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel


class BuildWithModels(build_py):
    """Copies models/ and proto/caffe.proto to where `dns models` and programs find them."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        package = Path(self.build_lib) / "caffe_dns"
        # An earlier build may have left modules that are gone by now, which would be imported.
        if package.resolve() != Path("caffe_dns").resolve():
            shutil.rmtree(package, ignore_errors=True)
        super().run()
        for file in [*sorted(Path("models").rglob("*")), Path("proto/caffe.proto")]:
            if file.suffix in (".prototxt", ".md", ".proto") and not _is_left_over(file):
                (package / file.parent).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, package / file)


class EditableByLink(editable_wheel):
    """Installs the path of a folder that leads to the package and to nothing else.

    From the project's own folder, programs would import its tools and tests for theirs. Of a path,
    Python starts in half the time that setuptools' finders take.
    """

    def finalize_options(self) -> None:
        link = Path(".editable", "caffe_dns")
        if not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(Path("..", "caffe_dns"))
        self.distribution.package_dir = {"": ".editable"}
        super().finalize_options()


def _is_left_over(file: Path) -> bool:
    """Whether training has left the file beside a model."""
    return any(word in file.name for word in ("_iter_", "_target_solver", "_pruned.", "_exported."))


setup(cmdclass={"build_py": BuildWithModels, "editable_wheel": EditableByLink})
