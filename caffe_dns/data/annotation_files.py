"""Annotation files with the objects of an image: VOC's XML, COCO's JSON, and lines of text.

Boxes are converted to fractions of the image, as groups of an AnnotatedDatum (`util/io.cpp` of
SSD's fork).
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from caffe_dns import encoding, log
from caffe_dns.data.boxes import Size
from caffe_dns.errors import CaffeError, first_line, nearest, shortened
from caffe_dns.files.reading import read_file
from caffe_dns.proto.caffe_pb2 import AnnotationGroup

#: xmin, ymin, xmax, ymax in pixels.
PixelBox = tuple[float, float, float, float]
#: No label, and no number of pixels, is as large as that.
_MOST = 2**31
#: The longest file that is taken apart, which takes up to 100 times as much memory: 5,000 objects.
_MOST_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """An object in a file: its label, its box, and whether it is hard to see."""

    label: int
    box: PixelBox
    difficult: bool = False


@dataclass(frozen=True)
class Annotations:
    """The objects of an image, and the image's (height, width) by which their boxes count."""

    size: Size
    objects: Sequence[Found]


def read_groups(
    path: str, kind: str, size: Size, labels: Mapping[str, int]
) -> list[AnnotationGroup]:
    """The objects in a file of this kind, by label in the order in which labels come.

    `size` is the (height, width) of the image's file; `labels` has numbers by name. Without the
    file there are no objects, with a warning. Raises CaffeError for a file that cannot be used.
    """
    if not os.path.exists(path):
        log.warning(f"{path} does not exist; its image has no objects")
        return []
    try:
        content = read_file(path)
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=path) from None
    if len(content) > _MOST_BYTES:
        raise CaffeError(
            f"{len(content):,} bytes are too many for the objects of one image; at most "
            f"{_MOST_BYTES:,} are read",
            file=path,
        )
    try:
        annotations = READERS[kind](content, size, labels)
    except CaffeError as error:
        raise error.locate(file=path) from None
    _warn(path, annotations, size)
    return _grouped(annotations)


def _read_xml(content: bytes, size: Size, labels: Mapping[str, int]) -> Annotations:
    """VOC's annotations; boxes are cut to whole pixels."""
    text: bytes | str = content
    if not content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # Names are bytes, as in label maps, whatever encoding the file claims to have.
        text = encoding.decode(content.removeprefix(codecs.BOM_UTF8))
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise CaffeError(f"is not XML: {first_line(error)}") from None
    if root.tag != "annotation":
        raise CaffeError(f"its root is <{shortened(root.tag)}>; <annotation> would be right")
    declared = _declared([root.findtext(f"size/{side}") for side in ("height", "width")])
    objects = []
    for number, each in enumerate(root.iter("object"), 1):
        place = f"object {number}"
        corners = [each.findtext(f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax")]
        x, y, right, top = (float(int(value)) for value in _numbers(corners, place))
        label = _label((each.findtext("name") or "").strip(), labels, place)
        difficult = (each.findtext("difficult") or "").strip() == "1"
        objects.append(Found(label, (x, y, right, top), difficult))
    return Annotations(declared or size, objects)


def _read_json(content: bytes, size: Size, labels: Mapping[str, int]) -> Annotations:
    """COCO's annotations of one image: xmin, ymin, width and height; crowds are difficult."""
    try:
        root = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CaffeError(f"is not JSON: {first_line(error)}") from None
    if not isinstance(root, dict) or not isinstance(root.get("annotation"), list):
        raise CaffeError('has no list of objects, "annotation"')
    image = root.get("image")
    image = image if isinstance(image, dict) else {}
    objects = []
    for number, each in enumerate(root["annotation"], 1):
        place = f"object {number}"
        if not isinstance(each, dict):
            raise CaffeError(f"{place} is not a JSON object")
        box = each.get("bbox")
        x, y, width, height = _numbers(box if isinstance(box, list) else [], place)
        label = _label(str(each.get("category_id", "")), labels, place)
        crowd = str(each.get("iscrowd", 0)) not in ("0", "False")
        objects.append(Found(label, (x, y, x + width, y + height), crowd))
    return Annotations(_declared([image.get("height"), image.get("width")]) or size, objects)


def _read_text(content: bytes, size: Size, labels: Mapping[str, int]) -> Annotations:
    """Lines of a label's number, xmin, ymin, xmax and ymax."""
    objects = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
        words = line.split(maxsplit=5)  # a line of millions of words takes much memory
        if not words:
            continue
        try:
            label, *corners = int(words[0]), *map(float, words[1:])
            x, y, right, top = corners
            if not all(abs(number) < _MOST for number in (label, *corners)):
                raise ValueError
        except ValueError:
            raise CaffeError(
                f"'{shortened(line)}' is not a label and four numbers, xmin, ymin, xmax and ymax",
                line=number,
            ) from None
        objects.append(Found(label, (x, y, right, top)))
    return Annotations(size, objects)


#: The kinds of files, by what --label_type calls them.
READERS: dict[str, Callable[[bytes, Size, Mapping[str, int]], Annotations]] = {
    "xml": _read_xml,
    "json": _read_json,
    "txt": _read_text,
}


def _declared(values: Sequence[Any]) -> Size | None:
    """Height and width as the file says them; None where it does not."""
    try:
        height, width = (int(value) for value in values)
    except (TypeError, ValueError, OverflowError):
        return None
    if not (0 < height < _MOST and 0 < width < _MOST):
        raise CaffeError(f"says that the image is {height}x{width} (height, width)")
    return height, width


def _numbers(values: Sequence[Any], place: str) -> list[float]:
    """Four numbers."""
    try:
        first, second, third, fourth = numbers = [float(value) for value in values]
        if not all(abs(number) < _MOST for number in numbers):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise CaffeError(f"{place} has no box of four numbers") from None
    return [first, second, third, fourth]


def _label(name: str, labels: Mapping[str, int], place: str) -> int:
    if name not in labels:
        name = shortened(name)
        hint = nearest(name, list(labels))
        raise CaffeError(f"{place} is called '{name}', which the label map does not have{hint}")
    return labels[name]


def _warn(path: str, annotations: Annotations, size: Size) -> None:
    for side, declared, found in zip(("height", "width"), annotations.size, size, strict=True):
        if declared != found:
            log.warning(f"{path} inconsistent image {side}.")
    height, width = annotations.size
    for x, y, right, top in (each.box for each in annotations.objects):
        if min(x, y, right, top) < 0 or max(x, right) > width or max(y, top) > height:
            log.warning(f"{path} bounding box exceeds image boundary.")
        if x > right or y > top:
            log.warning(f"{path} bounding box irregular.")


def _grouped(annotations: Annotations) -> list[AnnotationGroup]:
    """The objects by label, numbered within each."""
    height, width = annotations.size
    groups: dict[int, AnnotationGroup] = {}
    for found in annotations.objects:
        group = groups.setdefault(found.label, AnnotationGroup(group_label=found.label))
        each = group.annotation.add(instance_id=len(group.annotation))
        x, y, right, top = found.box
        each.bbox.xmin, each.bbox.ymin = x / width, y / height
        each.bbox.xmax, each.bbox.ymax = right / width, top / height
        each.bbox.difficult = found.difficult
    return list(groups.values())


def read_pairs(path: str) -> Iterator[tuple[str, str]]:
    """The lines `IMAGE ANNOTATION` of a list, or `IMAGE LABEL`. Raises CaffeError."""
    try:
        lines = read_file(path).decode("utf-8", "surrogateescape").splitlines()
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=path) from None
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) == 2:
            yield words[0], words[1]
        elif words:
            raise CaffeError(
                f"'{shortened(line)}' is not an image and its annotation, two words",
                file=path,
                line=number,
            )
