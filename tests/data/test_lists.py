"""Lists of files: what their lines mean, and what is said of those that mean nothing."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from caffe_dns.data.annotation_files import read_groups, read_pairs
from caffe_dns.data.clips import read_clips
from caffe_dns.data.image_files import read_lines
from caffe_dns.data.image_list import ImageList, ListedImage
from caffe_dns.data.label_map import read_names_and_sizes
from caffe_dns.data.object_files import read_object_file
from caffe_dns.errors import CaffeError
from tests.nets import recorded_log


def write(folder: Path, raw: bytes) -> str:
    path = folder / "list.txt"
    path.write_bytes(raw)
    return str(path)


@pytest.mark.parametrize(
    ("line", "name", "label", "complaint"),
    [
        # The labels are those of C's `atoi`, which Caffe calls.
        ("a b.png 3", "a b.png", 3, None),
        ("a.png -3", "a.png", -3, None),
        ("a.png 3\r", "a.png", 3, None),
        ("a.png 3 ", "a.png 3", 0, None),  # what is behind the last blank
        ("a.png cat", "a.png", 0, "'cat' is no whole number; it is read as 0, as in Caffe"),
        ("a.png ٣", "a.png", 0, "'٣' is no whole number; it is read as 0, as in Caffe"),
        ("a.png 1.75", "a.png", 1, "'1.75' is no whole number; it is read as 1, as in Caffe"),
        ("a.png", "a.png", 0, "there is no label after a space; it is read as 0, as in Caffe"),
    ],
)
def test_labels(line: str, name: str, label: int, complaint: str | None, tmp_path: Path) -> None:
    path = write(tmp_path, f"b.png 1\n{line}".encode())
    with recorded_log() as messages:
        assert ImageList(path)[1] == ListedImage(name, label)
    assert messages == ([] if complaint is None else [f"{path}:2: {complaint}"])


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_lines_end_as_they_do(end: bytes, tmp_path: Path) -> None:
    images = ImageList(write(tmp_path, b"a 1\n\xff b.png 2\r\n\xc3\xa9 3" + end))
    names = ["a", "\udcff b.png", "\u00e9"]
    assert list(images) == [ListedImage(name, label) for label, name in enumerate(names, 1)]
    assert (images[-1], images[1:]) == (list(images)[-1], list(images)[1:])


def test_empty_lines(tmp_path: Path) -> None:
    for raw, number in ((b"\n", 1), (b"a 1\n\nb 2", 2), (b"a 1\n\n", 2), (b"a 1\n \n", 2)):
        with pytest.raises(CaffeError, match=f":{number}: is empty; an image and its label"):
            ImageList(write(tmp_path, raw))
    images = ImageList(write(tmp_path, b"a 1\n\nb 2\n"), empty_lines=True)
    assert [image.name for image in images] == ["a", "", "b"]
    with pytest.raises(CaffeError, match="lists no images"):
        ImageList(write(tmp_path, b""))


def test_a_list_takes_little_more_than_its_text(tmp_path: Path) -> None:
    path = write(tmp_path, b"a 1\n" * 50_000)
    tracemalloc.start()
    images = ImageList(path)
    kept, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == 50_000
    # The text, and 8 bytes for each line, which are copied while they are looked for.
    assert kept < 3.1 * 200_000 and most < 8 * 200_000


def test_many_wrong_labels_are_one_warning(tmp_path: Path) -> None:
    with recorded_log() as messages:
        ImageList(write(tmp_path, b"a.png 1\nb.png x\nc.png y\nd.png z\n"))
    assert messages == [
        f"{tmp_path}/list.txt:2: 'x' is no whole number; it is read as 0, as in Caffe "
        "(2 more lines are like that)"
    ]


def test_a_byte_order_mark_and_line_ends_are_no_part_of_names(tmp_path: Path) -> None:
    path = write(tmp_path, b"\xef\xbb\xbfa.png 1\r\nb.png 2\r\n")
    assert [image.name for image in ImageList(path)] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ("a.png 1".encode("utf-16"), "is text in UTF-16; save it as UTF-8"),
        (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file; a text file that lists files would be right"),
        (b"\x0a\x00\x01", "is a binary file; a text file that lists files would be right"),
    ],
)
def test_what_is_no_list_is_said(tmp_path: Path, raw: bytes, complaint: str) -> None:
    path = write(tmp_path, raw)
    with pytest.raises(CaffeError) as caught:
        read_lines(path)
    assert str(caught.value) == f"{path}: {complaint}"


@pytest.mark.parametrize("label", [2**31, -(2**31) - 1, 2**64])
def test_labels_have_32_bits(label: int, tmp_path: Path) -> None:
    path = write(tmp_path, f"a.png 1\nb.png {label}".encode())
    with pytest.raises(CaffeError) as caught:
        ImageList(path)
    assert str(caught.value) == f"{path}:2: label {label} is none that 32 bits hold"
    assert ImageList(write(tmp_path, b"a.png %d" % (2**31 - 1)))[0].label == 2**31 - 1


def test_labels_of_thousands_of_digits(tmp_path: Path) -> None:
    for label in ("9" * 5000, "-" + "9" * 5000):
        with pytest.raises(CaffeError, match=r"list\.txt:1: label .* is none that 32 bits hold"):
            ImageList(write(tmp_path, f"a.png {label}".encode()))
    assert ImageList(write(tmp_path, b"a.png -" + b"0" * 5000 + b"7"))[0].label == -7


@pytest.mark.parametrize(
    ("read", "raw"),
    [
        (partial(read_object_file, root_folder=""), b"%s"),
        (partial(read_object_file, root_folder=""), b"# 0 %s 1 1 1"),
        (partial(read_object_file, root_folder=""), b"# 0 %s 1 1 1 1 -1 0 0 0 0 0 0"),
        (read_clips, b"%s"),
        (read_names_and_sizes, b"%s"),
        (lambda path: list(read_pairs(path)), b"%s"),
        (partial(read_groups, kind="txt", size=(1, 1), labels={}), b"%s"),
        (partial(read_groups, kind="xml", size=(1, 1), labels={}), b"<%s/>"),
        (
            partial(read_groups, kind="json", size=(1, 1), labels={}),
            b'{"annotation": [{"bbox": [0, 0, 1, 1], "category_id": "%s"}]}',
        ),
    ],
)
def test_a_long_word_is_not_shown_whole(
    tmp_path: Path, read: Callable[[str], object], raw: bytes
) -> None:
    for long in (b"w" * 10**6, b"1" * 10**6):
        path = write(tmp_path, raw % long)
        with pytest.raises(CaffeError) as caught:
            read(path)
        assert len(str(caught.value)) < 600
        assert "\n" not in str(caught.value)


def test_annotations_of_an_image_are_not_endless(tmp_path: Path) -> None:
    """A million opened tags take 100 MB."""
    path = write(tmp_path, b"<a>" * 700_000)
    with pytest.raises(CaffeError) as caught:
        read_groups(path, "xml", (1, 1), {})
    assert "2,100,000 bytes are too many for the objects of one image" in str(caught.value)


def test_a_long_label_that_is_no_number_is_a_short_warning(tmp_path: Path) -> None:
    with recorded_log() as messages:
        ImageList(write(tmp_path, b"a.png " + b"x" * 10**6))
    assert f"'{'x' * 200}...' is no whole number" in messages[0]
    assert len(messages[0]) < 600
