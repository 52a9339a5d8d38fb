"""The files that DetectionOutput writes its boxes to."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from caffe_dns import log
from caffe_dns.data.boxes import to_pixels
from caffe_dns.data.label_map import NamedImage, read_label_map, read_names_and_sizes
from caffe_dns.data.resizing import check_resize
from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.layers.base import Layer
from caffe_dns.proto.caffe_pb2 import SaveOutputParameter

if TYPE_CHECKING:
    from caffe_dns.data.boxes import Boxes

_FIELD = "detection_output_param.save_output_param"
_NUMBER = re.compile(r"-?[0-9]+(\.[0-9]+)?")


@dataclass(frozen=True)
class Detection:
    """A box that was found: xmin, ymin, width and height in pixels, to the hundredth."""

    image: str
    label: int
    name: str
    score: float
    box: tuple[float, float, float, float]

    def corners(self) -> str:
        """The box as text: whole pixels, cut, of xmin, ymin, xmax, ymax."""
        x, y, width, height = (int(value) for value in self.box)
        return f"{x} {y} {x + width} {y + height}"


class DetectionFiles:
    """Collects boxes, and writes them when as many images as were announced have had their turn.

    Then the next round begins, with the first image of the list (`DetectionOutputLayer`).
    """

    def __init__(
        self,
        param: SaveOutputParameter,
        names: dict[int, str],
        images: Sequence[NamedImage],
        write: Callable[[Path, str, list[Detection], list[str]], None],
    ) -> None:
        self._param = param
        self._names = names
        self._images = images
        self._write = write
        self._turn = 0
        self._found: list[Detection] = []

    @staticmethod
    def open(layer: Layer, param: SaveOutputParameter, background: int) -> DetectionFiles | None:
        """What `param` asks for; None where it is nothing. Raises CaffeError."""
        if not param.output_directory:
            return None
        for field in ("label_map_file", "name_size_file"):
            if not getattr(param, field):
                log.warning(f"Provide {field} if output results to files.")
                return None
        images = read_names_and_sizes(param.name_size_file)
        if param.HasField("num_test_image"):
            wanted = param.num_test_image
            if not 0 < wanted <= len(images):
                raise layer.error(
                    f"is {wanted}; {param.name_size_file} lists {len(images)} images",
                    f"{_FIELD}.num_test_image",
                )
            images = images[:wanted]
        if param.output_format not in _WRITERS:
            raise layer.error(
                f"is '{param.output_format}'; {', '.join(_WRITERS)} would be right",
                f"{_FIELD}.output_format",
            )
        if param.HasField("resize_param"):
            check_resize(param.resize_param, f"{_FIELD}.resize_param")
        labels = read_label_map(param.label_map_file)
        names = {item.label: item.name for item in labels.item if item.label != background}
        return DetectionFiles(param, names, images, _WRITERS[param.output_format])

    def add(self, rows: Boxes, images: int) -> None:
        """Take the rows of a batch, [boxes, 7]. Raises CaffeError."""
        for number in range(images):
            image = self._images[self._turn]
            self._found += self._detections(rows[rows[:, 0] == number], image)
            self._turn += 1
            if self._turn == len(self._images):
                self._finish()

    def _detections(self, rows: Boxes, image: NamedImage) -> list[Detection]:
        resize = self._param.resize_param if self._param.HasField("resize_param") else None
        corners = to_pixels(rows[:, 3:].astype(np.float32), image.size, resize)[0]
        sides = corners[:, 2:] - corners[:, :2]
        boxes = np.floor(np.concatenate([corners[:, :2], sides], 1) * 100 + 0.5) / 100
        found = []
        for row, box in zip(rows.tolist(), boxes.tolist(), strict=True):
            label = int(row[1])
            if label not in self._names:
                raise CaffeError(f"has no label {label}", file=self._param.label_map_file)
            found.append(Detection(image.name, label, self._names[label], row[2], tuple(box)))
        return found

    def _finish(self) -> None:
        folder = Path(on_disk(self._param.output_directory))
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CaffeError(f"cannot be made: {error.strerror}", file=str(folder)) from None
        prefix = self._param.output_name_prefix
        self._write(folder, prefix, self._found, list(self._names.values()))
        self._turn, self._found = 0, []


def _write_voc(folder: Path, prefix: str, found: list[Detection], names: list[str]) -> None:
    """A file for each class: image, score and corners."""
    for name in names:
        lines = [
            f"{each.image} {log.number(each.score)} {each.corners()}\n"
            for each in found
            if each.name == name
        ]
        write_atomically(folder / f"{prefix}{name}.txt", _encoded(lines))


def _write_ilsvrc(folder: Path, prefix: str, found: list[Detection], names: list[str]) -> None:
    """One file: image, label, score and corners."""
    lines = [
        f"{each.image} {each.label} {log.number(each.score)} {each.corners()}\n" for each in found
    ]
    write_atomically(folder / f"{prefix}.txt", _encoded(lines))


def _write_coco(folder: Path, prefix: str, found: list[Detection], names: list[str]) -> None:
    """One JSON file: xmin, ymin, width and height. Names of digits become numbers."""
    entries = [
        {
            "image_id": _number_or_text(each.image),
            "category_id": _number_or_text(each.name),
            "bbox": list(each.box),
            "score": each.score,
        }
        for each in found
    ]
    write_atomically(folder / f"{prefix}.json", _encoded([json.dumps(entries, indent=4) + "\n"]))


_WRITERS = {"VOC": _write_voc, "COCO": _write_coco, "ILSVRC": _write_ilsvrc}


def _number_or_text(text: str) -> float | int | str:
    if not _NUMBER.fullmatch(text):
        return text
    return float(text) if "." in text else int(text)


def _encoded(lines: list[str]) -> bytes:
    return "".join(lines).encode("utf-8", "surrogateescape")
