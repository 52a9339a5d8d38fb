"""Pictures of circles, squares and triangles on textured backgrounds, and the boxes around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

#: Height and width of a picture, and the extents of shapes in it, in pixels.
SIDE = 96
SMALLEST, LARGEST = 20, 60
MOST_SHAPES = 4
#: In the order of their labels, from 1; 0 is the background.
NAMES = ("circle", "square", "triangle")
#: How much two boxes may overlap, and how much the colour of a shape differs from what it hides.
MOST_OVERLAP, LEAST_CONTRAST = 0.1, 70.0
TRIALS = 20

#: xmin, ymin, xmax, ymax: the edges of the shape's pixels.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Shape:
    """What was drawn, and where."""

    name: str
    box: Box


def write_shapes(
    folder: Path,
    parts: Mapping[str, int],
    seed: int,
    map_all: Callable[[Callable[[int], str], range], Iterable[str]] = map,
) -> None:
    """Write so many pictures for each part, as `dns convert_annoset` reads them.

    Each depends on the seed, its part and its number alone, and `map_all` may draw several at once.
    FOLDER gets images/, annotations/, labelmap.prototxt and a list PART.txt for each part.
    """
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "labelmap.prototxt").write_text(label_map())
    for part, count in parts.items():
        lines = map_all(partial(_write_picture, folder, part, seed), range(count))
        (folder / f"{part}.txt").write_text("".join(lines))


def _write_picture(folder: Path, part: str, seed: int, number: int) -> str:
    """Write a picture and its annotation; returns their line in the list."""
    picture, shapes = draw_picture(np.random.default_rng([seed, number, *part.encode()]))
    image = f"images/{part}_{number:05d}.png"
    annotation = f"annotations/{part}_{number:05d}.xml"
    cv2.imwrite(str(folder / image), picture)
    (folder / annotation).write_bytes(to_xml(shapes))
    return f"{image} {annotation}\n"


def draw_picture(generator: np.random.Generator) -> tuple[np.ndarray, list[Shape]]:
    """A picture [SIDE, SIDE, 3] of 1 to MOST_SHAPES shapes, and these."""
    picture = _background(generator)
    shapes: list[Shape] = []
    for _ in range(generator.integers(1, MOST_SHAPES + 1)):
        for _ in range(TRIALS):
            name = str(generator.choice(NAMES))
            outline = _outline(name, generator)
            mask = cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [outline], 1).astype(bool)
            box = _box_around(mask)
            if all(_overlap(box, other.box) <= MOST_OVERLAP for other in shapes):
                picture[mask] = _surface(picture[mask], generator)
                shapes.append(Shape(name, box))
                break
    return np.clip(picture, 0, 255).astype(np.uint8), shapes


def to_xml(shapes: list[Shape]) -> bytes:
    """An annotation as VOC's data set has them."""
    root = ElementTree.Element("annotation")
    size = ElementTree.SubElement(root, "size")
    for name, extent in (("width", SIDE), ("height", SIDE), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(extent)
    for shape in shapes:
        each = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(each, "name").text = shape.name
        ElementTree.SubElement(each, "difficult").text = "0"
        bounds = ElementTree.SubElement(each, "bndbox")
        for corner, place in zip(("xmin", "ymin", "xmax", "ymax"), shape.box, strict=True):
            ElementTree.SubElement(bounds, corner).text = str(place)
    ElementTree.indent(root)
    return ElementTree.tostring(root)


def label_map() -> str:
    """The labels as a LabelMap in text."""
    names = {"none_of_the_above": "background"} | {name: name for name in NAMES}
    return "".join(
        f'item {{ name: "{name}" label: {label} display_name: "{shown}" }}\n'
        for label, (name, shown) in enumerate(names.items())
    )


def _background(generator: np.random.Generator) -> np.ndarray:
    """A colour with blotches of some size, with stripes in some direction, and with noise."""
    picture = np.full((SIDE, SIDE, 3), generator.uniform(40, 215, 3), np.float32)
    for cells in _some(generator, (3, 6, 12, 24)):
        blotches = generator.normal(0, 14, (cells, cells, 3)).astype(np.float32)
        picture += cv2.resize(blotches, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    x, y = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    angle, length = generator.uniform(0, np.pi), generator.uniform(5, 30)
    waves = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length)
    picture += waves[..., None] * generator.uniform(0, 18, 3)
    return picture + generator.normal(0, 6, picture.shape)


def _some(generator: np.random.Generator, values: tuple[int, ...]) -> Iterator[int]:
    return (value for value in values if generator.random() < 0.5)


def _outline(name: str, generator: np.random.Generator) -> np.ndarray:
    """The corners [N, 2] of a shape that lies in the picture, turned by any angle."""
    corners = {"circle": 64, "square": 4, "triangle": 3}[name]
    angles = generator.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(corners) / corners
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    low, high = points.min(0), points.max(0)
    points = (points - low) / (high - low).max() * (generator.uniform(SMALLEST, LARGEST) - 1)
    room = SIDE - 1 - points.max(0)
    outline: np.ndarray = np.rint(points + generator.uniform(0, 1, 2) * room).astype(np.int32)
    return outline


def _box_around(mask: np.ndarray) -> Box:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _overlap(first: Box, second: Box) -> float:
    """The area that two boxes share, over the smaller one's."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return max(width, 0) * max(height, 0) / min(areas)


def _surface(hidden: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Pixels [N, 3] of a colour that differs from that of what lies below, with noise."""
    colour = generator.uniform(0, 255, 3)
    while np.linalg.norm(colour - hidden.mean(0)) < LEAST_CONTRAST:
        colour = generator.uniform(0, 255, 3)
    return colour + generator.normal(0, 6, hidden.shape)
