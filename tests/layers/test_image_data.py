"""ImageData beyond the golden cases: orders, skips, ranks, and lists that are wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from caffe_dns.data.image_list import ImageList
from caffe_dns.layers import Context
from tests.layers.data_harness import data_layer, labels, read, refused

IMAGES = 7


@pytest.fixture
def listed(tmp_path: Path) -> str:
    """A definition, still open, of a list of 4x5 images of one gray level, which is the label."""
    (tmp_path / "some images").mkdir()
    lines = []
    for number in range(IMAGES):
        name = f"some images/{number}.png"
        cv2.imwrite(str(tmp_path / name), np.full((4, 5, 3), number, np.uint8))
        lines.append(f"{name} {number}\n")
    (tmp_path / "list").write_text("".join(lines))
    return (
        f"type: 'ImageData' image_data_param {{ source: '{tmp_path}/list' "
        f"root_folder: '{tmp_path}/' "
    )


def test_goes_round_in_the_order_of_the_list(listed: str) -> None:
    with data_layer(listed + "batch_size: 3 }") as layer:
        for index, (data, label) in enumerate(read(layer, 5)):
            assert label.tolist() == [(3 * index + n) % IMAGES for n in range(3)]
            assert data.shape == (3, 3, 4, 5)
            assert np.array_equal(data, np.broadcast_to(label[:, None, None, None], data.shape))
        assert layer.position() == 15
        layer.seek(100)
        assert labels(layer, 1) == [[100 % IMAGES, 101 % IMAGES, 102 % IMAGES]]


def test_shuffles_anew_in_each_round(listed: str) -> None:
    text = listed + f"batch_size: {IMAGES} shuffle: true }}"
    with data_layer(text, context=Context(seed=3)) as layer:
        rounds = labels(layer, 3)
    assert all(sorted(entries) == list(range(IMAGES)) for entries in rounds)
    assert rounds[0] != rounds[1]
    with data_layer(text, context=Context(seed=3)) as layer:
        layer.seek(IMAGES)
        assert labels(layer, 2) == rounds[1:]


def test_ranks_share_a_shuffled_list(listed: str) -> None:
    seen = []
    for rank in range(IMAGES):
        context = Context(seed=3, rank=rank, world_size=IMAGES)
        with data_layer(
            listed + "batch_size: 1 shuffle: true }", train=True, context=context
        ) as layer:
            seen += labels(layer, 1)[0]
    assert sorted(seen) == list(range(IMAGES))


def test_skips_at_the_beginning(listed: str) -> None:
    with data_layer(listed + "batch_size: 2 rand_skip: 7 }", context=Context(seed=1)) as layer:
        first, second = labels(layer, 2)
        assert second[0] == (first[0] + 2) % IMAGES
        assert 0 <= first[0] < 7
    assert "images of 7" in refused(listed + "batch_size: 2 rand_skip: 1000000 }")


def test_log(listed: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with data_layer(listed + "shuffle: true new_height: 6 new_width: 8 is_color: false }"):
        pass
    messages = [line.split("] ", 1)[1] for line in capfd.readouterr().err.splitlines()]
    assert messages == [
        f"Opening file {tmp_path}/list",
        "Shuffling data",
        f"A total of {IMAGES} images.",
        "output data size: 1,1,6,8",
    ]


def test_reads_lists_as_caffe_does(tmp_path: Path) -> None:
    (tmp_path / "list").write_bytes(b"a b.jpg 3\n12c.jpg\nd.jpg -4x\r\n\xff.jpg 5")
    images = ImageList(str(tmp_path / "list"))
    assert [(image.name, image.label) for image in images[:3]] == [
        ("a b.jpg", 3),
        ("12c.jpg", 12),  # no space: the whole line is the name, and what the label is read from
        ("d.jpg", -4),
    ]
    assert images[3].label == 5


def test_wrong_lists(listed: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    start = "type: 'ImageData' image_data_param { "
    assert "image_data_param.source: must name a list" in refused(start + "}")
    assert "cannot be read: No such file" in refused(start + f"source: '{tmp_path}/none' }}")
    for content, message in [
        ("", "lists no images"),
        ("some images/1.png 1\n\n", f"{path}:2: layer 'layer': is empty"),
        ("none.png 1\n", "none.png: layer 'layer': cannot be read: No such file"),
        ("list 1\n", f"list: layer 'layer': is not an image that can be decoded ({path}, line 1)"),
    ]:
        path.write_text(content)
        assert message in refused(listed + "}")
    path.write_text("some images/1.png 1\nnone.png 2\n")
    said = refused(listed + "batch_size: 2 }", batches=1)
    assert "none.png: layer 'layer': cannot be read: No such file or directory" in said
    assert said.endswith(f"({path}, line 2)")
    path.write_text("1.png 1\n")
    folder = tmp_path / "some images"
    assert (
        f"{folder}1.png is not there, but {folder}/1.png is: end the folder in a slash, {folder}/"
    ) in refused(f"{start} source: '{path}' root_folder: '{folder}' batch_size: 1 }}")


def test_wrong_settings(listed: str) -> None:
    assert "image_data_param.batch_size" in refused(listed + "batch_size: 0 }")
    assert "given together" in refused(listed + "new_width: 3 }")
    assert "takes 2 top blob(s)" in refused(listed + "}", tops=1)
