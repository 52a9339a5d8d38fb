"""ImageGtData: parts of images and their boxes, read by hand with OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.layers import Context
from tests.layers.data_harness import data_layer, read, refused

HEIGHT, WIDTH = 60, 90
MAPS = "field_w: 20 field_h: 24 downsample_rate: 8 field_w: 40 field_h: 40 downsample_rate: 16"
#: Class, whether ignored, corners.
BOXES = [(2, 0, 30, 10, 50, 34), (1, 1, 60, 20, 88, 50)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, the second without objects, and a list of them; every pixel is one of a kind."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([x, y, (x + y) % 256], -1).astype(np.uint8)
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), pixels)
    rows = "\n".join(" ".join(map(str, box)) for box in BOXES)
    (tmp_path / "list").write_text(
        f"# 0\na.png\n3 {HEIGHT} {WIDTH}\n2\n{rows}\n1\n0 40 20 60\n"
        f"# 1\nb.png\n3 {HEIGHT} {WIDTH}\n0\n0\n"
    )
    return tmp_path


def definition(folder: Path, more: str = "", transform: str = "", maps: str = MAPS) -> str:
    tops = "top: 'data' top: 'a' top: 'b' top: 'objects'"
    return (
        f"type: 'ImageGtData' {tops} transform_param {{ {transform} }} image_gt_data_param "
        f"{{ source: '{folder}/list' root_folder: '{folder}/' batch_size: 2 output_gt_boxes: true "
        f"{maps} {more} }}"
    )


def test_whole_images(folder: Path) -> None:
    text = definition(folder, "scale: 0.5", "mean_value: 1 mean_value: 2 mean_value: 3")
    with data_layer(text) as layer:
        assert layer.reshape([]) == [
            (2, 3, HEIGHT, WIDTH),
            (2, 6, 8, 11),
            (2, 6, 4, 6),
            (1, 7, 1, 1),
        ]
        data, first, second, objects = read(layer, 1)[0]
    pixels = cv2.imread(f"{folder}/a.png")
    assert pixels is not None
    expected = (pixels.astype(np.float32) - [1, 2, 3]).transpose(2, 0, 1) * 0.5
    np.testing.assert_array_equal(data, [expected, expected])
    rows = [[0, *box[2:], *box[:2]] for box in BOXES]
    np.testing.assert_array_equal(objects[..., 0, 0], rows)
    # The first object fits a field of the first map; the second is ignored.
    assert first[0, 0].max() == 2 and (first[0, 1:5, first[0, 0] == 2] == [40, 22, 20, 24]).all()
    assert set(np.unique(first[0, 0])) == {0, 2} and not second[0, 0].any()
    assert not first[1, :5].any() and not second[1].any()


def corner(canvas: np.ndarray) -> tuple[int, int, np.ndarray]:
    """Where the part of the image begins, x and y there, and which rows and columns are filled."""
    filled = np.asarray(canvas[1:].any(0))
    y, x = (int(places.min()) for places in np.nonzero(filled))
    return x - round(canvas[0, y, x]), y - round(canvas[1, y, x]), filled


@pytest.mark.parametrize(("height", "width"), [(40, 50), (60, 50), (40, 90)])
def test_crops_around_an_object(folder: Path, height: int, width: int) -> None:
    """Pixels, boxes and labels move together, and the object that was chosen is on the canvas."""
    text = definition(folder, f"crop_height: {height} crop_width: {width} shuffle: true")
    seen = set()
    with data_layer(text, context=Context(seed=3)) as layer:
        for data, _, _, objects in read(layer, 8):
            for at, canvas in enumerate(data):
                x, y, filled = corner(canvas)
                assert filled[1:, 1:].all()
                seen.add((x, y))
                rows = objects[objects[:, 0, 0, 0] == at][..., 0, 0]
                if not len(rows):
                    continue
                shift = [x, y, x, y]
                np.testing.assert_array_equal(rows[:, 1:5] - shift, [box[2:] for box in BOXES])
                middles = (rows[:, 1:3] + rows[:, 3:5]) / 2
                on = ((middles >= 0) & (middles < [width, height])).all(1)
                assert on.any()
                np.testing.assert_array_equal(rows[:, 6], [not on[0], True])
    assert len(seen) > 3


def test_small_images_are_framed(folder: Path) -> None:
    """An image of another size than the list's last one, on a canvas of that."""
    small = cv2.imread(f"{folder}/a.png")
    assert small is not None
    cv2.imwrite(f"{folder}/a.png", small[5:35, 5:65])
    with data_layer(definition(folder)) as layer:
        data, first, _, objects = read(layer, 1)[0]
    left = int(objects[0, 1, 0, 0]) - BOXES[0][2]
    top = int(objects[0, 2, 0, 0]) - BOXES[0][3]
    assert 5 <= left <= 24 and 5 <= top <= 25
    part = data[0][:, top : top + 30, left : left + 60]
    np.testing.assert_array_equal(part, small[5:35, 5:65].transpose(2, 0, 1))
    assert np.count_nonzero(data[0]) == np.count_nonzero(part)
    # Cells beside the image count as neither.
    assert first[0, 5, 0].all() and first[0, 5].max() == 1


def test_mirrored_images(folder: Path) -> None:
    seen = set()
    with data_layer(definition(folder, transform="mirror: true")) as layer:
        for data, _, _, objects in read(layer, 6):
            turned = data[0, 0, 0, 0] > 0
            seen.add(bool(turned))
            box = objects[0, 1:5, 0, 0].tolist()
            assert box == ([40, 10, 60, 34] if turned else [30, 10, 50, 34])
            np.testing.assert_array_equal(data[0, 0, 0, :: -1 if turned else 1], np.arange(WIDTH))
    assert seen == {True, False}


def test_objects_of_several_sizes(folder: Path) -> None:
    """The chosen one's side becomes 16 to 64 in steps of half an octave; as often it stays."""
    more = "do_multiple_scale: true min_scale: 16 max_scale: 64"
    factors = []
    with data_layer(definition(folder, more), context=Context(seed=1)) as layer:
        for data, _, _, objects in read(layer, 24):
            rows = objects[objects[:, 0, 0, 0] == 0][..., 0, 0]
            sides = (rows[:, 3:5] - rows[:, 1:3]) / [[20, 24], [28, 30]]
            np.testing.assert_allclose(sides, sides[0, 0], rtol=1e-5)
            factors.append(round(2 * float(np.log2(sides[0, 0])), 3))
            assert data.shape == (2, 3, HEIGHT, WIDTH)
    assert factors.count(0) > 8
    # The first object, of 21.9 pixels, is nearest to 22.6, the second, of 29, to 32.
    assert set(factors) <= {-2, -1, 0, 1, 2, 3}
    assert len(set(factors)) > 3
    more += " min_whaspect: 0.5 max_whaspect: 2"
    with data_layer(definition(folder, more), context=Context(seed=1)) as layer:
        rows = [batch[3][0, 1:5, 0, 0] for batch in read(layer, 24)]
    aspects = {round(float((box[2] - box[0]) / (box[3] - box[1])), 2) for box in rows}
    assert len(aspects) > 2 and min(aspects) >= 0.4 and max(aspects) <= 2.4


def test_more_of_images_with_objects_and_new_sizes(folder: Path) -> None:
    more = "fg_img_multiple: 2 resize_height: 30 resize_width: 45 cache_images: true"
    with data_layer(definition(folder, more)) as layer:
        batches = read(layer, 3)
    pixels = cv2.imread(f"{folder}/a.png")
    assert pixels is not None
    small = cv2.resize(pixels, (45, 30)).transpose(2, 0, 1)
    np.testing.assert_array_equal(batches[0][0][0], small)
    # Twice the first image, then the second.
    found = [set(batch[3][:, 0, 0, 0].tolist()) for batch in batches]
    assert found == [{0, 1}, {1}, {0}]
    np.testing.assert_array_equal(batches[0][3][0, 1:5, 0, 0], [15, 5, 25, 17])


def test_a_batch_without_objects(folder: Path) -> None:
    (folder / "list").write_text(f"# 0\nb.png\n3 {HEIGHT} {WIDTH}\n0\n0\n")
    with data_layer(definition(folder)) as layer:
        assert read(layer, 1)[0][3].flatten().tolist() == [0, 1, 1, 2, 2, 1, 1]


def test_what_does_not_fit(folder: Path) -> None:
    def wrong(more: str = "", transform: str = "", maps: str = MAPS, batches: int = 0) -> str:
        return refused(definition(folder, more, transform, maps), batches=batches)

    assert "field_h: a positive value for each map" in wrong(maps="field_w: 3 downsample_rate: 8")
    assert "top: 3 would be right: images, 1 map(s) of labels, objects" in wrong(
        maps="field_w: 3 field_h: 3 downsample_rate: 8"
    )
    assert "crop_width: is 91; at most 90" in wrong("crop_width: 91 crop_height: 20")
    assert "downsample_rate: 200 leaves no cell for images of 60 x 90" in wrong(
        maps=MAPS.replace("16", "200")
    )
    assert "transform_param.mean_value: give one value, or one" in wrong(
        transform="mean_value: 1 mean_value: 2"
    )
    assert "mirror: is not read in the fork; give mirror in transform_param" in wrong(
        "mirror: true"
    )
    assert "transform_param.crop_size: is not read" in wrong(transform="crop_size: 9")
    assert "max_scale: at least min_scale" in wrong(
        "do_multiple_scale: true min_scale: 9 max_scale: 8"
    )
    assert "fg_img_multiple: must be at least 1" in wrong("fg_img_multiple: 0")
    (folder / "a.png").unlink()
    assert "cannot be read: No such file" in wrong(batches=1)
    (folder / "list").write_text("# 0\na.png\n3 6 6\n1\n0 0 1 1 2 2\n0\n")
    assert "the class 0; a positive number would be right" in wrong()
    (folder / "list").write_text("# 0\na.png\n3 6 6\n1\n1 0 1 1\n")
    assert f"breaks the format at or after {folder}/a.png" in wrong()
    (folder / "list").write_text("# 0\n")
    assert "breaks the format at or after the first image" in wrong()
    (folder / "list").write_text(f"# 0\na.png\n3 6 6\n1\n1 0 1 1 2 {'9' * 400}\n0\n")
    assert f"breaks the format at or after {folder}/a.png" in wrong()
