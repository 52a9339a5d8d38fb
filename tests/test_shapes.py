"""The pictures of shapes: boxes that fit, lists and annotations, and the same ones for a seed."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np

from tools import shapes
from tools.shapes import MOST_SHAPES, NAMES, SIDE, draw_picture, write_shapes


def test_boxes_hold_their_shapes_and_are_no_larger() -> None:
    """Of a shape alone: inside of its box all sides touch it, outside there is background."""
    for seed in range(30):
        generator = np.random.default_rng(seed)
        outline = shapes._outline(NAMES[seed % 3], generator)
        mask = cv2.fillPoly(np.zeros((SIDE, SIDE), np.uint8), [outline], 1)
        left, top, right, bottom = shapes._box_around(mask.astype(bool))
        inside = mask[top:bottom, left:right]
        assert inside.sum() == mask.sum()
        assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert shapes.SMALLEST - 1 <= max(right - left, bottom - top) <= shapes.LARGEST + 1


def test_pictures_have_what_their_boxes_say() -> None:
    """A shape's centre has one colour, far from what is to the left and to the right of it."""
    counts = set()
    for seed in range(40):
        picture, found = draw_picture(np.random.default_rng(seed))
        assert picture.shape == (SIDE, SIDE, 3)
        assert picture.dtype == np.uint8
        counts.add(len(found))
        if len(found) == 1:
            left, top, right, bottom = found[0].box
            y, x = (top + bottom) // 2, (left + right) // 2
            centre = picture[y - 2 : y + 3, x - 2 : x + 3].reshape(-1, 3)
            around = np.delete(picture[top:bottom], np.s_[left:right], 1).reshape(-1, 3)
            assert centre.std(0).max() < 12
            assert np.linalg.norm(centre.mean(0) - around.mean(0)) > shapes.LEAST_CONTRAST / 2
    assert counts == set(range(1, MOST_SHAPES + 1))


def test_files_are_the_same_for_a_seed(tmp_path: Path) -> None:
    for folder, seed, count in (("a", 1, 3), ("b", 1, 2), ("c", 2, 2)):
        write_shapes(tmp_path / folder, {"train": count, "test": 1}, seed)
    first, fewer, other = (tmp_path / name for name in "abc")
    lines = (first / "train.txt").read_text().splitlines()
    assert len(lines) == 3
    for image, annotation in (line.split() for line in lines[:2]):
        assert (first / image).read_bytes() == (fewer / image).read_bytes()
        assert (first / image).read_bytes() != (other / image).read_bytes()
        root = ElementTree.parse(first / annotation).getroot()
        assert {x.text for x in root.iter("name")} <= set(NAMES)
        pixels = cv2.imread(str(first / image))
        assert pixels is not None
        assert pixels.shape == (SIDE, SIDE, 3)
    assert (first / "images/test_00000.png").read_bytes() != (
        first / lines[0].split()[0]
    ).read_bytes()
