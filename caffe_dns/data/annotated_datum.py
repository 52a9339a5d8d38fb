"""Images with the objects in them: the contents of an AnnotatedDatum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from caffe_dns.data.boxes import Boxes, areas, intersections, project, shares, touches
from caffe_dns.data.datum import Buffer, Image, decode_image
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import AnnotatedDatum, Datum, EmitConstraint
from caffe_dns.proto.wire_text import parse

#: For so many objects of an image MobileNet-YOLO's labels have room.
MOST_OBJECTS = 300


@dataclass(frozen=True)
class Objects:
    """N objects: boxes [N, 4] in shares of the image, float32, and a row of each other array.

    `labels` and `instances` are whole numbers, `difficult` is bool.
    """

    boxes: Boxes
    labels: np.ndarray[Any, np.dtype[np.int64]]
    instances: np.ndarray[Any, np.dtype[np.int64]]
    difficult: np.ndarray[Any, np.dtype[np.bool_]]

    def __len__(self) -> int:
        return len(self.labels)

    def with_boxes(self, boxes: Boxes) -> Objects:
        """The same objects elsewhere."""
        return replace(self, boxes=boxes)

    def seen_in(self, part: Boxes, constraint: EmitConstraint | None) -> Objects:
        """Those that are left in a part of the image [4], in shares of it.

        With a constraint, they also have to meet that (`TransformAnnotation`).
        """
        left = touches(part, self.boxes)
        if constraint is not None:
            left &= _emitted(part, self.boxes, constraint)
        boxes = project(part, self.boxes)
        left &= areas(boxes) > 0
        return Objects(boxes[left], self.labels[left], self.instances[left], self.difficult[left])

    def mirrored(self) -> Objects:
        """The objects of the image with left and right exchanged."""
        boxes = self.boxes.copy()
        boxes[:, [0, 2]] = 1 - self.boxes[:, [2, 0]]
        return self.with_boxes(boxes)

    def rows(self, item: int) -> Boxes:
        """Rows [N, 8] of a label blob: item, label, instance, the box, and whether difficult."""
        rows = np.empty((len(self), 8), np.float32)
        rows[:, 0], rows[:, 1], rows[:, 2] = item, self.labels, self.instances
        rows[:, 3:7], rows[:, 7] = self.boxes, self.difficult
        return rows

    def centred_rows(self) -> Boxes:
        """Rows [MOST_OBJECTS, 5]: label from 0 on, centre, sides; zeros where there is no object.

        Raises CaffeError where there are too many.
        """
        if len(self) > MOST_OBJECTS:
            what = f"a record has {len(self)} objects; {MOST_OBJECTS} at most would be right"
            raise CaffeError(what, field="annotated_data_param.yolo_data_type")
        rows = np.zeros((MOST_OBJECTS, 5), np.float32)
        low, high = self.boxes[:, :2], self.boxes[:, 2:]
        rows[: len(self), 0] = self.labels - 1
        rows[: len(self), 1:] = np.concatenate([(low + high) / 2, high - low], 1)
        return rows


def _emitted(part: Boxes, boxes: Boxes, constraint: EmitConstraint) -> Boxes:
    if constraint.emit_type == EmitConstraint.CENTER:
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        return np.logical_not(((centres < part[:2]) | (centres > part[2:])).any(1))
    return shares(intersections(boxes, part), areas(boxes)) > constraint.emit_overlap


@dataclass(frozen=True)
class Annotated:
    """A record: the image [height, width, channels], bytes or float32, and what is in it."""

    image: Image
    objects: Objects
    #: Whether the record has a type, so that its objects count and not its label.
    typed: bool
    label: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image."""
        height, width = self.image.shape[:2]
        return height, width


def parse_annotated(value: Buffer, *, color: bool = False, gray: bool = False) -> Annotated:
    """The record in `value`; encoded images are decoded as stored, or in colour, or gray.

    Raises CaffeError for what is no AnnotatedDatum.
    """
    record = AnnotatedDatum()
    try:
        parse(record, bytes(value))
    except DecodeError:
        raise CaffeError("a record is not an AnnotatedDatum") from None
    if not record.HasField("datum"):
        raise CaffeError("a record is not an AnnotatedDatum: it has no image")
    image = _image(record.datum, color, gray).transpose(1, 2, 0)
    return Annotated(image, _objects(record), record.HasField("type"), record.datum.label)


def _image(datum: Datum, color: bool, gray: bool) -> Image:
    """The pixels [channels, height, width]."""
    if datum.encoded:
        if color and gray:
            raise CaffeError(
                "force_color and force_gray exclude each other", field="transform_param"
            )
        return decode_image(datum.data, color=color, gray=gray)
    values: Image = np.frombuffer(datum.data, np.uint8)
    if not datum.data:
        values = np.array(datum.float_data, np.float32)
    shape = (datum.channels, datum.height, datum.width)
    if min(shape) < 1 or values.size != shape[0] * shape[1] * shape[2]:
        raise CaffeError(
            f"a record of {shape[0]}x{shape[1]}x{shape[2]} (channels, height, width) holds "
            f"{values.size} values"
        )
    return values.reshape(shape)


def _objects(record: AnnotatedDatum) -> Objects:
    found = [
        (group.group_label, each.instance_id, each.bbox)
        for group in record.annotation_group
        for each in group.annotation
    ]
    boxes = [(box.xmin, box.ymin, box.xmax, box.ymax) for _, _, box in found]
    for number, box in enumerate(boxes, 1):
        if not all(map(math.isfinite, box)):
            corners = " ".join(f"{value:g}" for value in box)
            raise CaffeError(f"the box of object {number} is {corners}; it must be finite")
    return make_objects(
        boxes,
        [label for label, _, _ in found],
        [instance for _, instance, _ in found],
        [box.difficult for _, _, box in found],
    )


def make_objects(
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    instances: Sequence[int] | None = None,
    difficult: Sequence[bool] | None = None,
) -> Objects:
    """Objects from lists."""
    count = len(labels)
    return Objects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array([0] * count if instances is None else instances, np.int64),
        np.array([False] * count if difficult is None else difficult, bool),
    )
