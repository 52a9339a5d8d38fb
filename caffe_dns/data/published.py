"""MNIST and CIFAR-10 as their authors publish them, made into databases.

Restates `examples/mnist/convert_mnist_data.cpp`, `examples/siamese/convert_mnist_siamese_data.cpp`
and `examples/cifar10/convert_cifar_data.cpp`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from caffe_dns import log
from caffe_dns.data.database import Writer
from caffe_dns.data.db import create_database
from caffe_dns.errors import CaffeError
from caffe_dns.files import reading
from caffe_dns.proto.caffe_pb2 import Datum

#: The first number in an idx file: unsigned bytes, along three axes or one.
IMAGES_MAGIC, LABELS_MAGIC = 0x803, 0x801
RECORDS_PER_COMMIT = 1000

#: Each record is a byte for the label and an image.
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_RECORDS = 10000
_CIFAR_TRAIN_BATCHES = 5


def read_file(path: str | Path) -> bytes:
    """All of a file. Raises CaffeError when it cannot be read."""
    try:
        return reading.read_file(path)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(path)) from None


def read_idx(data: bytes, magic: int) -> np.ndarray:
    """The bytes in an idx file, in their shape. Raises CaffeError if it is not such a file."""
    axes = magic & 0xFF
    header = np.frombuffer(data, ">u4", min(axes + 1, len(data) // 4))
    values = np.frombuffer(data, np.uint8, offset=4 * len(header))
    kind = "images" if magic == IMAGES_MAGIC else "labels"
    if len(header) <= axes or header[0] != magic:
        raise CaffeError(f"not an idx file of the expected kind ({kind}, not compressed)")
    expected = np.prod(header[1:], dtype=np.float64)  # which does not overflow
    if values.size != expected or not values.size:
        extents = " x ".join(str(extent) for extent in header[1:])
        raise CaffeError(
            f"is not whole: {values.size} bytes of {kind}, where the header says {extents}"
        )
    return values.reshape(header[1:])


def read_mnist(image_file: str, label_file: str) -> tuple[bytes, bytes]:
    """Two idx files, of as many images as labels. Raises CaffeError, with the file, for others."""
    files, counts = [], []
    for path, magic in ((image_file, IMAGES_MAGIC), (label_file, LABELS_MAGIC)):
        data = read_file(path)
        try:
            counts.append(len(read_idx(data, magic)))
        except CaffeError as error:
            raise error.locate(file=path) from None
        files.append(data)
    if counts[0] != counts[1]:
        counted = f"has {counts[0]} images, {label_file} {counts[1]} labels"
        raise CaffeError(counted, file=image_file)
    return files[0], files[1]


def write_mnist(images: bytes, labels: bytes, path: str, backend: str = "lmdb") -> int:
    """Write two idx files as a database; returns the number of records, which are the keys in
    eight digits.

    The database appears whole or not at all. Raises CaffeError for other files.
    """
    pixels, digits = _labelled(images, labels, path)
    with create_database(path, backend) as database:
        _announce(pixels)
        _write(database, pixels[:, np.newaxis], digits, first=0, digits_of_key=8)
    log.info(f"Processed {len(pixels)} files.")
    return len(pixels)


def write_mnist_pairs(images: bytes, labels: bytes, path: str, draws: np.random.Generator) -> None:
    """Write as many random pairs of images as there are images, as a LevelDB.

    A pair is a record of two channels; its label says whether both images have the same. Keys are
    as of `write_mnist`, and so are the errors.
    """
    pixels, digits = _labelled(images, labels, path)
    pairs = draws.integers(len(pixels), size=(len(pixels), 2))
    same = digits[pairs[:, 0]] == digits[pairs[:, 1]]
    with create_database(path, "leveldb") as database:
        _announce(pixels)
        _write(database, pixels[pairs], same, first=0, digits_of_key=8)


def _labelled(images: bytes, labels: bytes, path: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, digits = read_idx(images, IMAGES_MAGIC), read_idx(labels, LABELS_MAGIC)
    if len(pixels) != len(digits):
        raise CaffeError(f"{len(pixels)} images, but {len(digits)} labels", file=path)
    return pixels, digits


def _announce(pixels: np.ndarray) -> None:
    log.info(f"A total of {len(pixels)} items.")
    log.info(f"Rows: {pixels.shape[1]} Cols: {pixels.shape[2]}")


def write_cifar(input_folder: str, output_folder: str, backend: str) -> None:
    """Write the binary version of CIFAR-10 as `cifar10_train_BACKEND` and `cifar10_test_BACKEND`.

    Keys are the record numbers in five digits. A database appears whole or not at all. Raises
    CaffeError for files that are missing or of another size.
    """
    log.info("Writing Training data")
    with create_database(f"{output_folder}/cifar10_train_{backend}", backend) as database:
        for number in range(_CIFAR_TRAIN_BATCHES):
            log.info(f"Training Batch {number + 1}")
            images, labels = _read_cifar(f"{input_folder}/data_batch_{number + 1}.bin")
            _write(database, images, labels, first=number * _CIFAR_RECORDS, digits_of_key=5)
    log.info("Writing Testing data")
    with create_database(f"{output_folder}/cifar10_test_{backend}", backend) as database:
        images, labels = _read_cifar(f"{input_folder}/test_batch.bin")
        _write(database, images, labels, first=0, digits_of_key=5)


def _read_cifar(path: str) -> tuple[np.ndarray, np.ndarray]:
    size = 1 + int(np.prod(_CIFAR_SHAPE))
    data = read_file(path)
    if len(data) != _CIFAR_RECORDS * size:
        raise CaffeError(
            f"has {len(data)} bytes; a batch of the binary version has {_CIFAR_RECORDS * size}",
            file=path,
        )
    records = np.frombuffer(data, np.uint8).reshape(_CIFAR_RECORDS, size)
    return records[:, 1:].reshape(-1, *_CIFAR_SHAPE), records[:, 0]


def _write(
    database: Writer, images: np.ndarray, labels: np.ndarray, first: int, digits_of_key: int
) -> None:
    """Write images [N, channels, height, width] and labels [N], the keys numbered from `first`."""
    channels, height, width = images.shape[1:]
    for number, (image, label) in enumerate(zip(images, labels, strict=True), first):
        datum = Datum(
            channels=channels, height=height, width=width, data=image.tobytes(), label=int(label)
        )
        database.put(f"{number:0{digits_of_key}}".encode(), datum.SerializeToString())
        if (number + 1) % RECORDS_PER_COMMIT == 0:
            database.commit()
