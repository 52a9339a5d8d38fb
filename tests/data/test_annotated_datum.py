"""Records of images with objects, and objects in parts of images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from google.protobuf import text_format

from caffe_dns.data.annotated_datum import Objects, make_objects, parse_annotated
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import AnnotatedDatum, Datum, EmitConstraint

BOXES = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 1.0, 0.9], [0.0, 0.0, 0.2, 0.2]]


def record(typed: bool = True, **datum: object) -> AnnotatedDatum:
    """A raw image of 2x3 with three objects of two labels."""
    pixels = np.arange(18, dtype=np.uint8)
    fields = {"channels": 3, "height": 2, "width": 3, "data": pixels.tobytes(), "label": 7}
    result = AnnotatedDatum(datum=Datum(**{**fields, **datum}))  # type: ignore[arg-type]
    if typed:
        result.type = AnnotatedDatum.BBOX
    for label, numbers in ((2, (0, 1)), (1, (2,))):
        group = result.annotation_group.add(group_label=label)
        for instance, number in enumerate(numbers):
            each = group.annotation.add(instance_id=instance)
            for name, value in zip(("xmin", "ymin", "xmax", "ymax"), BOXES[number], strict=True):
                setattr(each.bbox, name, value)
            each.bbox.difficult = number == 1
    return result


def test_a_raw_record() -> None:
    found = parse_annotated(record().SerializeToString())
    assert found.size == (2, 3)
    np.testing.assert_array_equal(found.image, np.arange(18).reshape(3, 2, 3).transpose(1, 2, 0))
    assert found.typed and found.label == 7
    objects = found.objects
    np.testing.assert_array_equal(objects.boxes, np.array(BOXES, np.float32))
    assert objects.labels.tolist() == [2, 2, 1]
    assert objects.instances.tolist() == [0, 1, 0]
    assert objects.difficult.tolist() == [False, True, False]
    rows = objects.rows(5)
    np.testing.assert_array_equal(rows[1], np.array([5, 2, 1, 0.5, 0.5, 1, 0.9, 1], np.float32))


def test_other_records() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    encoded = cv2.imencode(".png", pixels)[1].tobytes()
    found = parse_annotated(record(data=encoded, encoded=True).SerializeToString())
    np.testing.assert_array_equal(found.image, pixels)
    gray = parse_annotated(record(data=encoded, encoded=True).SerializeToString(), gray=True)
    assert gray.image.shape == (4, 5, 1)
    floats = record(data=b"", float_data=[0.5] * 18).SerializeToString()
    assert parse_annotated(floats).image.dtype == np.float32
    assert not parse_annotated(record(typed=False).SerializeToString()).typed


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\xff\xff", "a record is not an AnnotatedDatum"),
        (Datum(label=3).SerializeToString(), "a record is not an AnnotatedDatum"),
        (record(height=3).SerializeToString(), "a record of 3x3x3 .* holds 18 values"),
        (record(encoded=True).SerializeToString(), "cannot be decoded"),
    ],
)
def test_what_is_no_record(value: bytes, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        parse_annotated(value)


def seen(part: list[float], constraint: str | None = None) -> Objects:
    emit = None if constraint is None else text_format.Parse(constraint, EmitConstraint())
    return make_objects(BOXES, [0, 1, 2]).seen_in(np.array(part, np.float32), emit)


def test_objects_in_a_part() -> None:
    found = seen([0.25, 0.0, 0.75, 1.0])
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_allclose(
        found.boxes, [[0, 0.2, 0.1, 0.4], [0.5, 0.5, 1, 0.9]], rtol=1e-5, atol=1e-7
    )
    # A frame around the image.
    found = seen([-0.5, -1.0, 1.5, 1.0])
    np.testing.assert_allclose(found.boxes[0], [0.3, 0.6, 0.4, 0.7], rtol=1e-5)
    # What only touches the part is not in it.
    assert seen([0.2, 0.2, 0.5, 0.5]).labels.tolist() == [0]


@pytest.mark.parametrize(
    ("constraint", "left"),
    [
        ("emit_type: CENTER", [1]),
        ("emit_type: MIN_OVERLAP emit_overlap: 0.2", [0, 1]),
        ("emit_type: MIN_OVERLAP emit_overlap: 0.3", [1]),
        ("emit_type: MIN_OVERLAP emit_overlap: 0.6", []),
    ],
)
def test_objects_that_meet_a_constraint(constraint: str, left: list[int]) -> None:
    # A quarter of the first object and half of the second lie in it.
    assert seen([0.25, 0.0, 0.75, 1.0], constraint).labels.tolist() == left


def test_mirrored_objects() -> None:
    found = make_objects(BOXES, [0, 1, 2]).mirrored()
    np.testing.assert_allclose(found.boxes[0], [0.7, 0.2, 0.9, 0.4], rtol=1e-6)
