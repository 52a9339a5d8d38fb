"""Databases of small pictures with bright objects on black."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from caffe_dns.data import create_database
from caffe_dns.proto.caffe_pb2 import AnnotatedDatum

HEIGHT, WIDTH = 24, 32


def scene(number: int, *, encoded: bool = False) -> AnnotatedDatum:
    """Picture number n: n modulo 3 objects of label 1 + n modulo 2, as bright as 100 + n."""
    image = np.full((HEIGHT, WIDTH, 3), number, np.uint8)
    record = AnnotatedDatum(type=AnnotatedDatum.BBOX)
    record.datum.label = number
    if number % 3:
        group = record.annotation_group.add(group_label=1 + number % 2)
    for index in range(number % 3):
        left, top = 4 + 10 * index, 2 + number % 5
        image[top : top + 8, left : left + 8] = 100 + number
        box = group.annotation.add(instance_id=index).bbox
        box.xmin, box.xmax = left / WIDTH, (left + 8) / WIDTH
        box.ymin, box.ymax = top / HEIGHT, (top + 8) / HEIGHT
        box.difficult = index == 1
    if encoded:
        record.datum.data = cv2.imencode(".png", image)[1].tobytes()
        record.datum.encoded = True
    else:
        record.datum.data = image.transpose(2, 0, 1).tobytes()
    record.datum.channels, record.datum.height, record.datum.width = 3, HEIGHT, WIDTH
    return record


def make_scenes(path: Path, count: int, backend: str = "lmdb", *, encoded: bool = False) -> str:
    """A database of so many pictures; returns its path."""
    with create_database(str(path), backend) as writer:
        for number in range(count):
            value = scene(number, encoded=encoded).SerializeToString()
            writer.put(f"{number:08d}".encode(), value)
        writer.commit()
    return str(path)
