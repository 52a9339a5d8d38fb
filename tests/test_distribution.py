"""What a wheel and an sdist have, and what works with the wheel alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.cli.harness import complaint, run_well

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]

#: Ten lines as a user with mypy --strict writes them.
PROGRAM = """
import torch
from caffe_dns import CaffeError, Net, Pruner, load_net, prune

net: Net = load_net("models/lenet/deploy.prototxt", surgery=False)
try:
    scores: torch.Tensor = net(torch.rand(2, 1, 28, 28))["prob"]
except CaffeError as error:
    print(error.file, error.line)
pruner: Pruner = prune(net, compression=10.0, steps=100)
pruner.step()
kept: int = sum(count.kept for count in pruner.counts())
print(scores.shape, kept, pruner.report())
"""


def build(kind: str, source: Path, folder: Path) -> Path:
    """A wheel or an sdist of the project in `source`."""
    program = f"from setuptools import build_meta; build_meta.build_{kind}({str(folder)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    (made,) = folder.iterdir()
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the project that git knows, so that building leaves nothing in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout")
    folder = tmp_path_factory.mktemp("checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in names.stdout.decode().split("\0"):
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By way of an sdist, as pip builds from one, where an older version has been built before."""
    sdist = build("sdist", checkout, tmp_path_factory.mktemp("sdist"))
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    (source,) = unpacked.iterdir()
    (source / "build/lib/caffe_dns/layers").mkdir(parents=True)
    (source / "build/lib/caffe_dns/layers/gone.py").write_text("raise ImportError")
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


def test_a_build_in_place_removes_nothing(checkout: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(checkout, source)
    words = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "."]
    subprocess.run(words, cwd=source, check=True, capture_output=True)
    modules = [{p.relative_to(root) for p in root.rglob("*.py")} for root in (checkout, source)]
    assert modules[0] and modules[0] <= modules[1]


@pytest.mark.slow
def test_a_wheel_is_enough(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    """In an empty folder, in an environment that has nothing of this project but the wheel."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
        assert any(name.endswith(".data/scripts/dns") for name in archive.namelist())
    # What it depends on, without the path that leads to this project.
    others = tmp_path / "others"
    others.mkdir()
    (here,) = {Path(path) for path in sys.path if path.endswith("site-packages")}
    for entry in here.iterdir():
        if "caffe_dns" not in entry.name and "editable" not in entry.name:
            (others / entry.name).symlink_to(entry)
    (packages / "others.pth").write_text(str(others))
    folder = tmp_path / "folder"
    folder.mkdir()
    python = str(environment / "bin" / "python")

    def dns(*arguments: str) -> str:
        done = subprocess.run(
            [python, "-m", "caffe_dns", *arguments],
            cwd=folder,
            env={"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    number = len(list((checkout / "models" / "lenet").iterdir()))
    assert dns("models", "lenet") == f"models/lenet: {number} written\n"
    for file in (folder / "models" / "lenet").iterdir():
        assert file.read_bytes() == (ROOT / "models" / "lenet" / file.name).read_bytes()
    assert "ip1" in dns("summary", "--model", "models/lenet/deploy.prototxt", "--quiet")
    assert (packages / "caffe_dns" / "proto" / "caffe.proto").exists()
    assert (packages / "caffe_dns" / "py.typed").exists()

    (folder / "program.py").write_text(PROGRAM)
    mypy = [sys.executable, "-m", "mypy", "--strict"]
    for interpreter in (python, sys.executable):
        done = subprocess.run(
            [*mypy, "--python-executable", interpreter, "program.py"],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout


def test_an_editable_installation_has_the_package_alone(checkout: Path, tmp_path: Path) -> None:
    """Not tools/ and tests/, which programs would import in the place of theirs."""
    made = build("editable", checkout, tmp_path)
    with zipfile.ZipFile(made) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".pth"))
        path = Path(archive.read(name).decode().strip())
    assert [file.name for file in path.glob("[!.]*") if file.suffix != ".egg-info"] == ["caffe_dns"]
    assert (path / "caffe_dns").resolve() == (checkout / "caffe_dns").resolve()


def test_models_are_put_where_they_are_missing(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    number = len(list((ROOT / "models" / "lenet").glob("*.prototxt"))) + 1
    assert run_well(["models", "lenet"], capfd).out == f"models/lenet: {number} written\n"
    own = tmp_path / "models" / "lenet" / "solver.prototxt"
    own.write_text("mine")
    (tmp_path / "models" / "lenet" / "deploy.prototxt").unlink()
    said = run_well(["models", "lenet"], capfd).out
    assert said == f"models/lenet: 1 written, {number - 1} there already\n"
    assert own.read_text() == "mine"
    assert complaint(["models", "lenett"], capfd).startswith(
        "dns: there is no model 'lenett' (did you mean 'lenet'?); known: alexnet, "
    )
    said = run_well(["models"], capfd).out
    folders = sorted(folder.name for folder in (ROOT / "models").iterdir() if folder.is_dir())
    assert [line.split(":")[0] for line in said.splitlines()] == [f"models/{f}" for f in folders]
