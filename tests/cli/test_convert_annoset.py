"""`dns convert_annoset` on pictures with annotations in all three formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.data.annotated_datum import Annotated, parse_annotated
from caffe_dns.data.db import open_database
from caffe_dns.proto.caffe_pb2 import AnnotatedDatum
from tests.cli.harness import Result, complaint, run, run_well

Capture = pytest.CaptureFixture[str]

LABELS = """
item { name: "none_of_the_above" label: 0 display_name: "background" }
item { name: "cat" label: 1 display_name: "cat" }
item { name: "dog" label: 2 display_name: "dog" }
"""
#: Name, box in pixels of the first picture, 40 x 60 (height, width), and whether difficult.
OBJECTS = [
    ("dog", (6, 4, 30, 20), False),
    ("cat", (30, 10, 60, 40), True),
    ("dog", (0, 0, 12, 8), False),
]
#: As they are stored: by label, in the order in which labels come.
STORED = [OBJECTS[0], OBJECTS[2], OBJECTS[1]]


def as_xml(objects: Sequence[tuple[str, tuple[int, ...], bool]]) -> str:
    body = "".join(
        f"<object><name>{name}</name><pose>Left</pose><difficult>{int(difficult)}</difficult>"
        f"<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox></object>"
        for name, box, difficult in objects
    )
    size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
    return f"<annotation><filename>a.png</filename>{size}{body}</annotation>"


def as_json(objects: Sequence[tuple[str, tuple[int, ...], bool]]) -> str:
    entries = [
        {
            "category_id": name,
            "iscrowd": int(difficult),
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }
        for name, box, difficult in objects
    ]
    return json.dumps({"image": {"height": 40, "width": 60}, "annotation": entries})


def as_text(objects: Sequence[tuple[str, tuple[int, ...], bool]]) -> str:
    numbers = {"cat": 1, "dog": 2}
    lines = [f"{numbers[name]} {' '.join(map(str, box))}\n" for name, box, _ in objects]
    return "".join(lines)


WRITERS = {"xml": as_xml, "json": as_json, "txt": as_text}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    draws = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for name, size in (("a.png", (40, 60)), ("b.jpg", (30, 20))):
        cv2.imwrite(str(tmp_path / "data" / name), draws.integers(0, 256, (*size, 3), np.uint8))
    for kind, writer in WRITERS.items():
        (tmp_path / "data" / f"a.{kind}").write_text(writer(OBJECTS))
        (tmp_path / f"{kind}.lst").write_text(f"a.png a.{kind}\nb.jpg b.{kind}\n")
    (tmp_path / "labels.prototxt").write_text(LABELS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(kind: str, *more: str) -> list[str]:
    flags = ["--anno_type=detection", f"--label_type={kind}", "--label_map_file=labels.prototxt"]
    return ["convert_annoset", *flags, *more, "data/", f"{kind}.lst", "db"]


def records(backend: str = "lmdb") -> list[tuple[bytes, AnnotatedDatum, Annotated]]:
    with open_database("db", backend, announce=False) as database:
        pairs = [(key, bytes(value)) for key, value in database.records()]
    return [(key, AnnotatedDatum.FromString(value), parse_annotated(value)) for key, value in pairs]


@pytest.mark.parametrize("kind", sorted(WRITERS))
@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
def test_records(kind: str, backend: str, folder: Path, capfd: Capture) -> None:
    result = run_well(command(kind, f"--backend={backend}"), capfd)
    assert result.messages == [
        "A total of 2 images.",
        f"Opened {backend} db",
        f"data/b.{kind} does not exist; its image has no objects",
        "Processed 2 files.",
    ]
    (key, raw, first), (_, _, second) = records(backend)
    assert key == b"00000000_a.png"
    assert raw.type == AnnotatedDatum.BBOX and raw.datum.label == -1
    np.testing.assert_array_equal(first.image, cv2.imread("data/a.png"))
    assert first.objects.labels.tolist() == [2, 2, 1]
    assert first.objects.instances.tolist() == [0, 1, 0]
    # Lines of text do not say what is difficult.
    wanted = [difficult and kind != "txt" for _, _, difficult in STORED]
    assert first.objects.difficult.tolist() == wanted
    boxes = np.array([box for _, box, _ in STORED]) / [60, 40, 60, 40]
    np.testing.assert_allclose(first.objects.boxes, boxes, rtol=1e-6)
    assert len(second.objects) == 0 and second.typed


@pytest.mark.parametrize(
    ("declared", "stored"),
    [
        ("gbk", "gbk"),
        ("no-such", "gbk"),
        (None, "latin-1"),
        ("UTF-8", "utf-8-sig"),
        ("utf-16", "utf-16"),
    ],
)
def test_names_are_bytes_whatever_the_encoding(
    declared: str | None, stored: str, folder: Path, capfd: Capture
) -> None:
    """SSD's parser does not look at the encoding that a file claims to have."""
    name = "chien élevé" if stored == "latin-1" else "狗狗"
    text = as_xml([(name, (1, 2, 3, 4), False)])
    if declared is not None:
        text = f'<?xml version="1.0" encoding="{declared}"?>\n{text}'
    Path("data/a.xml").write_bytes(text.encode(stored))
    kept = "utf-8" if stored.startswith("utf") else stored
    Path("labels.prototxt").write_bytes(LABELS.replace("dog", name).encode(kept))
    run_well(command("xml"), capfd)
    assert records()[0][2].objects.labels.tolist() == [2]


def test_encoded_images(folder: Path, capfd: Capture) -> None:
    result = run_well(command("xml", "--encode_type=jpg"), capfd)
    assert "encode_type specified, assuming encoded=true." in result.messages
    (_, raw, first), (_, other, _) = records()
    assert raw.datum.encoded and (raw.datum.height, raw.datum.width) == (40, 60)
    assert raw.datum.channels == 3
    assert first.size == (40, 60)
    assert other.datum.data == (folder / "data/b.jpg").read_bytes()


@pytest.mark.parametrize(
    ("flags", "sizes"),
    [
        (["--resize_height=24", "--resize_width=32"], [(24, 32), (24, 32)]),
        (["--min_dim=30"], [(40, 60), (45, 30)]),
        (["--max_dim=45"], [(30, 45), (30, 20)]),
        (["--min_dim=50", "--max_dim=70"], [(47, 70), (70, 47)]),
    ],
)
def test_sizes(
    flags: list[str], sizes: list[tuple[int, int]], folder: Path, capfd: Capture
) -> None:
    run_well(command("xml", *flags, "--encode_type=png"), capfd)
    found = records()
    assert [each.size for _, _, each in found] == sizes
    assert [(raw.datum.height, raw.datum.width) for _, raw, _ in found] == sizes
    # Boxes are shares of the image in its own size.
    np.testing.assert_allclose(
        found[0][2].objects.boxes[0], np.array([6, 4, 30, 20]) / [60, 40, 60, 40], rtol=1e-6
    )


def test_classification(folder: Path, capfd: Capture) -> None:
    Path("labels.lst").write_text("a.png 3\nb.jpg 7\n")
    run_well(["convert_annoset", "--gray", "data/", "labels.lst", "db"], capfd)
    found = records()
    assert [each.label for _, _, each in found] == [3, 7]
    assert [each.typed for _, _, each in found] == [False, False]
    assert found[0][2].image.shape == (40, 60, 1)


def test_images_that_cannot_be_read_are_left_out(folder: Path, capfd: Capture) -> None:
    Path("xml.lst").write_text("gone.png a.xml\na.png a.xml\n")
    result = run(command("xml"), capfd)
    assert result.code == 0
    assert any("Could not open or find file data/gone.png" in line for line in result.messages)
    assert [key for key, _, _ in records()] == [b"00000001_a.png"]


def test_odd_boxes_are_said(folder: Path, capfd: Capture) -> None:
    odd = [("cat", (50, 10, 70, 20), False), ("cat", (30, 10, 20, 20), False)]
    Path("data/b.xml").write_text(as_xml(odd))
    messages = run_well(command("xml"), capfd).messages
    assert messages[2:6] == [
        "data/b.xml inconsistent image height.",
        "data/b.xml inconsistent image width.",
        "data/b.xml bounding box exceeds image boundary.",
        "data/b.xml bounding box irregular.",
    ]


def test_sizes_that_differ(folder: Path, capfd: Capture) -> None:
    said = complaint(command("xml", "--check_size"), capfd)
    assert "data/b.jpg: Incorrect data field size 1800: the images before have 7200" in said
    assert not Path("db").exists()


@pytest.mark.parametrize(
    ("name", "content", "kind", "message"),
    [
        ("b.xml", "<annotation>", "xml", "data/b.xml: is not XML: no element found"),
        ("b.xml", "<boxes/>", "xml", "data/b.xml: its root is <boxes>; <annotation> would be"),
        ("b.xml", as_xml([("dgo", (1, 2, 3, 4), False)]), "xml", "(did you mean 'dog'?)"),
        (
            "b.xml",
            "<annotation><object><name>cat</name></object></annotation>",
            "xml",
            "data/b.xml: object 1 has no box of four numbers",
        ),
        (
            "b.xml",
            "<annotation><size><height>0</height><width>3</width></size></annotation>",
            "xml",
            "data/b.xml: says that the image is 0x3",
        ),
        ("b.xml", "\n" * (2**23 + 1), "xml", "data/b.xml: 8,388,609 bytes are too many for"),
        ("b.json", "{", "json", "data/b.json: is not JSON: "),
        ("b.json", "[]", "json", 'data/b.json: has no list of objects, "annotation"'),
        ("b.json", '{"annotation": [3]}', "json", "data/b.json: object 1 is not a JSON object"),
        (
            "b.xml",
            as_xml([("dog", (1, 2, 3, 4), False)]).replace(">1<", ">1e999<"),
            "xml",
            "data/b.xml: object 1 has no box of four numbers",
        ),
        ("b.json", "[" * 100_000, "json", "data/b.json: is not JSON: "),
        (
            "b.json",
            as_json([("dog", (1, 2, 3, 4), False)]).replace("[1,", "[NaN,"),
            "json",
            "data/b.json: object 1 has no box of four numbers",
        ),
        (
            "b.json",
            as_json([]).replace("40", f"1{'0' * 400}"),
            "json",
            "data/b.json: says that the image is 1000",
        ),
        ("b.txt", "\n1 2 3 4\n", "txt", "data/b.txt:2: '1 2 3 4' is not a label and four"),
        ("b.txt", "1 2 3 4 inf", "txt", "data/b.txt:1: '1 2 3 4 inf' is not a label and four"),
        ("b.txt", "2147483648 1 2 3 4", "txt", "data/b.txt:1: '2147483648 1 2 3 4' is not a"),
        (
            "b.txt",
            "1 " * 9999,
            "txt",
            f"data/b.txt:1: '{'1 ' * 100}...' is not a label and four numbers",
        ),
        ("xml.lst", "a.png\n", "xml", "xml.lst:1: 'a.png' is not an image and its annotation"),
        ("xml.lst", "", "xml", "xml.lst: lists no images"),
        ("labels.prototxt", "", "xml", "labels.prototxt: names no labels"),
    ],
)
def test_wrong_files_are_named(
    name: str, content: str, kind: str, message: str, folder: Path, capfd: Capture
) -> None:
    path = Path("data", name) if name.startswith("b.") else Path(name)
    path.write_text(content)
    assert message in complaint(command(kind), capfd)
    assert not Path("db").exists()


@pytest.mark.parametrize("name", ["xml.lst", "data/b.xml"])
def test_devices_are_not_read(name: str, folder: Path, capfd: Capture) -> None:
    Path(name).unlink(missing_ok=True)
    Path(name).symlink_to("/dev/zero")
    said = complaint(command("xml"), capfd)
    assert f"{name}: cannot be read: it is a device, not a file" in said


def test_wrong_flags_are_named(folder: Path, capfd: Capture) -> None:
    def said(*flags: str) -> str:
        return complaint(["convert_annoset", *flags, "data/", "xml.lst", "db"], capfd)

    assert "-anno_type is 'box'; classification, detection would be right" in said(
        "--anno_type=box"
    )
    assert "-label_type is 'yaml'; xml, json, txt would" in said("--label_type", "yaml")
    assert "-anno_type detection needs -label_map_file FILE" in said("--anno_type=detection")
    assert "the label 'a.xml' is not a whole number (for annotation files, give" in said()


def test_labels_given_twice(folder: Path, capfd: Capture) -> None:
    Path("labels.prototxt").write_text(LABELS + 'item { name: "cat" label: 3 }')
    assert "has the name 'cat' twice" in complaint(command("xml", "--check_label"), capfd)
    result: Result = run_well(command("xml"), capfd)
    assert result.code == 0
    assert records()[0][2].objects.labels.tolist() == [2, 2, 3]
