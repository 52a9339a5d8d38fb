"""MNIST and CIFAR-10 as published, made into the databases that Caffe's converters make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.data.datum import parse_datum
from caffe_dns.data.db import open_database
from caffe_dns.data.published import write_cifar, write_mnist
from caffe_dns.errors import CaffeError
from tests.cli.harness import complaint, run_well
from tests.data.test_db import contents
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]


def idx(array: np.ndarray, magic: int) -> bytes:
    return np.array([magic, *array.shape], ">u4").tobytes() + array.astype(np.uint8).tobytes()


def golden_files(name: str) -> tuple[bytes, bytes]:
    """The images and labels of a golden database, as idx files."""
    datums = [parse_datum(value) for _, value in contents(GOLDEN / "data" / name)]
    images = np.stack([datum.image()[0] for datum in datums])
    return idx(images, 0x803), idx(np.array([datum.label for datum in datums]), 0x801)


@pytest.mark.parametrize("name", ["mnist1k_train_lmdb", "mnist500_test_lmdb"])
def test_mnist_is_what_caffes_converter_writes(name: str, tmp_path: Path) -> None:
    assert write_mnist(*golden_files(name), str(tmp_path / "db")) in (500, 1000)
    assert contents(tmp_path / "db") == contents(GOLDEN / "data" / name)


def test_other_files_are_not_mnist(tmp_path: Path) -> None:
    images, labels = golden_files("mnist500_test_lmdb")
    for pair in [(labels, labels), (images, b""), (images[:12], labels)]:
        with pytest.raises(CaffeError, match="not an idx file"):
            write_mnist(*pair, str(tmp_path / "db"))
    for pair in [(images[:-1], labels), (images, labels[:-1])]:
        with pytest.raises(CaffeError, match=r"not whole: .* where the header says 500"):
            write_mnist(*pair, str(tmp_path / "db"))
    with pytest.raises(CaffeError, match="500 images, but 3 labels"):
        write_mnist(images, idx(np.arange(3), 0x801), str(tmp_path / "db"))
    for extents in ([2**31, 2**31, 4], [0, 2**32 - 1, 2**32 - 1]):
        huge = np.array([0x803, *extents], ">u4").tobytes()
        with pytest.raises(CaffeError, match="is not whole: 0 bytes of images"):
            write_mnist(huge, labels, str(tmp_path / "db"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def idx_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files `images` and `labels` in an empty current folder."""
    monkeypatch.chdir(tmp_path)
    images, labels = golden_files("mnist500_test_lmdb")
    Path("images").write_bytes(images)
    Path("labels").write_bytes(labels)


def test_the_command_for_mnist(idx_files: None, capfd: Capture) -> None:
    result = run_well(["convert_mnist_data", "images", "labels", "db"], capfd)
    # The messages of examples/mnist/convert_mnist_data.cpp, after that of its database.
    assert result.messages == [
        "Opened lmdb db",
        "A total of 500 items.",
        "Rows: 28 Cols: 28",
        "Processed 500 files.",
    ]
    assert contents(Path("db")) == contents(GOLDEN / "data" / "mnist500_test_lmdb")
    run_well(["convert_mnist_data", "-backend=leveldb", "images", "labels", "level"], capfd)
    with open_database("level", "leveldb") as database:
        assert [(key, bytes(value)) for key, value in database.records()] == contents(Path("db"))
    wrong = ["convert_mnist_data", "labels", "labels", "new"]
    assert "labels: not an idx file of the expected kind (images" in complaint(wrong, capfd)
    Path("few").write_bytes(idx(np.arange(3), 0x801))
    few = ["convert_mnist_data", "images", "few", "new"]
    assert complaint(few, capfd) == "dns: images: has 500 images, few 3 labels"
    assert "nowhere: cannot be read" in complaint([*wrong[:1], "nowhere", "labels", "new"], capfd)
    assert "exists already" in complaint(["convert_mnist_data", "images", "labels", "db"], capfd)
    assert not Path("new").exists()


def test_the_command_for_pairs(idx_files: None, capfd: Capture) -> None:
    """By what examples/siamese/convert_mnist_siamese_data.cpp writes, which logs to files only."""
    words = ["convert_mnist_siamese_data", "images", "labels", "db"]
    assert run_well(words, capfd).err == ""
    # Image -> labels of those that look like it.
    known: dict[bytes, set[int]] = {}
    for _, value in contents(GOLDEN / "data" / "mnist500_test_lmdb"):
        datum = parse_datum(value)
        known.setdefault(datum.image().tobytes(), set()).add(datum.label)
    with open_database("db", "leveldb") as database:
        records = [(key, parse_datum(bytes(value))) for key, value in database.records()]
    assert [key for key, _ in records] == [b"%08d" % number for number in range(500)]
    same = 0
    for _, datum in records:
        pair = datum.image()
        assert pair.shape == (2, 28, 28)
        first, second = (known[image.tobytes()] for image in pair)
        assert datum.label == (first == second)
        same += datum.label
    assert 15 < same < 100  # some 10 % of 500
    assert len({datum.image().tobytes() for _, datum in records}) > 490
    assert "exists already" in complaint(words, capfd)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six files of 10,000 records; number i has the label i mod 10 and counts in its pixels."""
    folder = tmp_path_factory.mktemp("cifar")
    for batch, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        records = np.zeros((10000, 3073), np.uint8)
        records[:, 0] = np.arange(10000) % 10
        records[:, 1] = batch
        records[:, 2] = np.arange(10000) // 100
        records[:, -1] = 7
        records.tofile(folder / f"{name}.bin")
    return folder


def test_cifar(cifar: Path, tmp_path: Path, capfd: Capture) -> None:
    result = run_well(["convert_cifar_data", str(cifar), str(tmp_path), "lmdb"], capfd)
    assert [line for line in result.messages if "Opened" not in line] == [
        "Writing Training data",
        *(f"Training Batch {number}" for number in range(1, 6)),
        "Writing Testing data",
    ]
    with open_database(str(tmp_path / "cifar10_train_lmdb")) as database:
        assert database.entries() == 50000
        for number, (key, value) in enumerate(database.records()):
            if number % 7001 == 0:
                datum = parse_datum(value)
                assert (key, datum.label) == (b"%05d" % number, number % 10)
                image = datum.image()
                assert image.shape == (3, 32, 32) and image[2, 31, 31] == 7
                assert image[0, 0, :2].tolist() == [number // 10000, number % 10000 // 100]
    with open_database(str(tmp_path / "cifar10_test_lmdb")) as database:
        assert database.entries() == 10000


def test_files_that_are_not_cifar(cifar: Path, tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=r"data_batch_1\.bin: cannot be read"):
        write_cifar(str(tmp_path), str(tmp_path), "lmdb")
    (tmp_path / "data_batch_1.bin").write_bytes(b"short")
    with pytest.raises(CaffeError, match=r"has 5 bytes; a batch .* has 30730000"):
        write_cifar(str(tmp_path), str(tmp_path), "lmdb")
    with pytest.raises(CaffeError, match="unknown database backend 'sqlite'"):
        write_cifar(str(cifar), str(tmp_path), "sqlite")
    assert [path.name for path in tmp_path.iterdir()] == ["data_batch_1.bin"]
