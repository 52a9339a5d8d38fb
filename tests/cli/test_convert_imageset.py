"""`dns convert_imageset` against the databases and the log of Caffe's tool."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.data.datum import parse_datum
from caffe_dns.data.db import open_database
from caffe_dns.data.image_set import _raw_record
from caffe_dns.data.lmdb_writer import LMDBWriter
from caffe_dns.proto.caffe_pb2 import Datum
from tests.cli.harness import complaint, run, run_well
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]
TOOLS = GOLDEN / "tools"
RESIZE = ["--resize_height=24", "--resize_width=20"]


@pytest.fixture(autouse=True)
def in_tools_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOOLS)


def records(path: Path | str, backend: str = "lmdb") -> list[tuple[bytes, bytes]]:
    with open_database(str(path), backend, announce=False) as database:
        return [(key, bytes(value)) for key, value in database.records()]


@pytest.mark.parametrize(
    ("recorded", "backend", "flags"),
    [
        ("resized_lmdb", "lmdb", RESIZE),
        ("encoded_lmdb", "lmdb", ["--encoded", "--encode_type=jpg"]),
        ("encoded_lmdb", "lmdb", ["-noencoded", "-encode_type", "jpg"]),
        ("gray_lmdb", "lmdb", ["-gray=true", "-resize_height", "16", "-resize_width", "16"]),
        ("resized_leveldb", "leveldb", [*RESIZE, "--backend=leveldb"]),
        ("resized_lmdb", "lmdb", [*RESIZE, "--check_size"]),
    ],
)
def test_records_are_caffes(
    recorded: str, backend: str, flags: list[str], tmp_path: Path, capfd: Capture
) -> None:
    target = tmp_path / "db"
    run_well(["convert_imageset", *flags, "images/", "list.txt", str(target)], capfd)
    assert records(target, backend) == records(recorded, backend)
    assert [path.name for path in tmp_path.iterdir()] == ["db"]


def test_the_log_is_caffes(tmp_path: Path, capfd: Capture) -> None:
    target = str(tmp_path / "db")
    result = run_well(["convert_imageset", *RESIZE, "images/", "list.txt", target], capfd)
    log = (GOLDEN / "logs" / "convert_imageset.log").read_text().splitlines()
    theirs = [line.partition("] ")[2].replace("tools/resized_lmdb", target) for line in log]
    assert result.messages == theirs


@pytest.mark.parametrize("shape", [(700, 900, 3), (700, 900)])
def test_a_raw_record_is_made_once(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(1).integers(256, size=shape).astype(np.uint8)
    planes = pixels.reshape(700, 900, -1).transpose(2, 0, 1)
    datum = Datum(channels=len(planes), height=700, width=900, label=-3, encoded=False)
    datum.data = planes.tobytes()
    _raw_record(pixels, 1)
    tracemalloc.start()
    record = _raw_record(pixels, -3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert bytes(record) == datum.SerializeToString()
    assert peak < 1.05 * pixels.size


def test_encoding_goes_by_the_name(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "db"
    run_well(["convert_imageset", "--encoded", "images/", "list.txt", str(target)], capfd)
    lines = Path("list.txt").read_text().split()[::2]
    for (key, value), name in zip(records(target), lines, strict=True):
        datum = parse_datum(value)
        assert key.endswith(name.encode())
        assert bytes(datum.data) == Path("images", name).read_bytes()
        assert datum.encoded


def test_resized_images_are_encoded_anew(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "db"
    flags = [*RESIZE, "--encoded", "--encode_type=png"]
    run_well(["convert_imageset", *flags, "images/", "list.txt", str(target)], capfd)
    for (_, value), (_, raw) in zip(records(target), records("resized_lmdb"), strict=True):
        np.testing.assert_array_equal(parse_datum(value).image(), parse_datum(raw).image())


def test_shuffle_moves_labels_with_their_images(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "db"
    arguments = ["convert_imageset", *RESIZE, "--shuffle", "images/", "list.txt", str(target)]
    result = run_well(arguments, capfd)
    assert result.messages[0] == "Shuffling data"
    assert [key[:8] for key, _ in records(target)] == [b"%08d" % i for i in range(12)]
    shuffled = {(key[9:], value) for key, value in records(target)}
    assert shuffled == {(key[9:], value) for key, value in records("resized_lmdb")}


def test_files_that_cannot_be_read_are_passed_over(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "bad.jpg").write_text("not an image")
    cv2.imwrite(str(tmp_path / "a b.png"), np.full((3, 2, 3), 7, np.uint8))
    listed = tmp_path / "list.txt"
    listed.write_text("gone.jpg 1\nbad.jpg 2\na b.png 3\n\n")
    target = tmp_path / "db"
    result = run_well(["convert_imageset", f"{tmp_path}/", str(listed), str(target)], capfd)
    errors = [line for line in result.messages if line.startswith("Could not open or find file")]
    assert [line.split("/")[-1].split(" ")[0] for line in errors] == ["gone.jpg", "bad.jpg", ""]
    assert result.messages[-1] == "Processed 1 files."
    [(key, value)] = records(target)
    assert key == b"00000002_a b.png"
    assert parse_datum(value).label == 3


def test_lines_of_every_thousand(tmp_path: Path, capfd: Capture) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((1, 1, 3), np.uint8))
    listed = tmp_path / "list.txt"
    listed.write_text("a.png 1\n" * 2001)
    target = tmp_path / "db"
    result = run_well(["convert_imageset", f"{tmp_path}/", str(listed), str(target)], capfd)
    assert [line for line in result.messages if line.startswith("Processed")] == [
        "Processed 1000 files.",
        "Processed 2000 files.",
        "Processed 2001 files.",
    ]
    assert len(records(target)) == 2001


def test_one_side_alone_resizes_nothing_and_is_told(tmp_path: Path, capfd: Capture) -> None:
    """As in Caffe, which says nothing (`ReadImageToCVMat`, io.cpp)."""
    run = ["convert_imageset", "images/", "list.txt"]
    run_well([*run, str(tmp_path / "plain")], capfd)
    messages = run_well([*run, str(tmp_path / "db"), "--resize_height=5"], capfd).messages
    assert "-resize_height and -resize_width resize together only; no image is resized" in messages
    assert records(tmp_path / "db") == records(tmp_path / "plain")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--check_size"], "Incorrect data field size"),
        (["--encoded", "--check_size"], "Incorrect data field size"),
        (["--encode_type=xyz"], "'xyz', a format that OpenCV does not write; jpg or png"),
        (["--encode_type=\udce4"], "'\udce4', a format that OpenCV does not write; jpg or png"),
        (
            ["--resize_width=1000000000", "--resize_height=1000000000"],
            "im00.jpg: an image of 30x44 (height, width) cannot be resized: OpenCV",
        ),
        (["--backend=lmbd"], "'lmdb'"),
        (["--resize_width=wide"], "'wide'"),
    ],
)
def test_wrong_flags_leave_nothing(
    flags: list[str], word: str, tmp_path: Path, capfd: Capture
) -> None:
    target = tmp_path / "db"
    line = complaint(["convert_imageset", *flags, "images/", "list.txt", str(target)], capfd)
    assert word in line
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(writer: LMDBWriter, key: bytes, value: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LMDBWriter, "put", interrupt)
    target = str(tmp_path / "db")
    assert run(["convert_imageset", "images/", "list.txt", target], capfd).code == 130
    assert list(tmp_path.iterdir()) == []


def test_wrong_files(tmp_path: Path, capfd: Capture) -> None:
    def said(*arguments: str) -> str:
        return complaint(["convert_imageset", *arguments], capfd)

    target = str(tmp_path / "db")
    (tmp_path / "empty.txt").touch()
    assert "gone.txt: cannot be read" in said("images/", "gone.txt", target)
    assert "empty.txt: lists no images" in said("images/", str(tmp_path / "empty.txt"), target)
    assert "list.txt: none of the images" in said("nowhere/", "list.txt", target)
    line = said("images", "list.txt", target)
    assert "is: end the folder in a slash, images/" in line
    assert "no folder" in said("images/", "list.txt", str(tmp_path / "no" / "db"))
    assert "'LISTFILE'" in said("images/")
    assert [path.name for path in tmp_path.iterdir()] == ["empty.txt"]


def test_a_database_that_exists_stays_as_it_is(tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "db"
    arguments = ["convert_imageset", *RESIZE, "images/", "list.txt", str(target)]
    run_well(arguments, capfd)
    before = records(target)
    assert "exists already" in complaint([*arguments, "--gray"], capfd)
    assert records(target) == before
