"""AnnotatedData on databases of small pictures whose objects are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.data import create_database
from caffe_dns.layers import Context
from caffe_dns.proto.blobs import array_to_blob
from tests.layers.data_harness import data_layer, read, refused
from tests.layers.detection.scenes import HEIGHT, WIDTH, make_scenes, scene
from tests.nets import recorded_log
from tests.oracle import GOLDEN

AUGMENTED = (
    "transform_param { mirror: true mean_value: 10 resize_param { height: 20 width: 20 }"
    " expand_param { prob: 0.5 max_expand_ratio: 2 } emit_constraint { emit_type: CENTER }"
    " distort_param { brightness_prob: 0.5 brightness_delta: 32 } }"
    " annotated_data_param { batch_sampler { max_sample: 1 max_trials: 1 } batch_sampler {"
    " sampler { min_scale: 0.5 max_scale: 1 } max_sample: 1"
    " sample_constraint { min_jaccard_overlap: 0.1 } } }"
)


@pytest.fixture
def source(tmp_path: Path) -> str:
    return make_scenes(tmp_path / "scenes", 7)


def definition(source: str, more: str = "", batch: int = 4, backend: str = "LMDB") -> str:
    data = f"data_param {{ source: '{source}' batch_size: {batch} backend: {backend} }}"
    return f"type: 'AnnotatedData' {data} {more}"


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
@pytest.mark.parametrize("encoded", [True, False])
def test_images_and_objects(backend: str, encoded: bool, tmp_path: Path) -> None:
    source = make_scenes(tmp_path / "scenes", 7, backend, encoded=encoded)
    with (
        recorded_log() as messages,
        data_layer(definition(source, backend=backend.upper())) as layer,
    ):
        assert layer.reshape([]) == [(4, 3, HEIGHT, WIDTH), (1, 1, 1, 8)]
        (images, labels), (more_images, more_labels) = read(layer, 2)
    assert f"output data size: 4,3,{HEIGHT},{WIDTH}" in messages
    assert images.dtype == np.float32 and images.shape == (4, 3, HEIGHT, WIDTH)
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert more_images[:, 2, -1, -1].tolist() == [4, 5, 6, 0]
    # Pictures 0 and 3 are empty, 1 and 2 hold one and two objects.
    expected = [
        [1, 2, 0, 4 / WIDTH, 3 / HEIGHT, 12 / WIDTH, 11 / HEIGHT, 0],
        [2, 1, 0, 4 / WIDTH, 4 / HEIGHT, 12 / WIDTH, 12 / HEIGHT, 0],
        [2, 1, 1, 14 / WIDTH, 4 / HEIGHT, 22 / WIDTH, 12 / HEIGHT, 1],
    ]
    np.testing.assert_allclose(labels[0, 0], expected, rtol=1e-6)
    assert more_labels[0, 0, :, 0].tolist() == [0, 1, 1]


def test_a_batch_without_objects_has_a_row_of_minus_one(tmp_path: Path) -> None:
    source = make_scenes(tmp_path / "one", 1)
    with data_layer(definition(source, batch=2)) as layer:
        ((_, labels),) = read(layer, 1)
    np.testing.assert_array_equal(labels, np.full((1, 1, 1, 8), -1))


def test_mean_scale_and_size(source: str) -> None:
    more = "transform_param { scale: 0.5 mean_value: 1 mean_value: 2 mean_value: 3"
    more += " resize_param { height: 12 width: 16 interp_mode: NEAREST } }"
    with data_layer(definition(source, more)) as layer:
        ((images, labels),) = read(layer, 1)
    assert images.shape == (4, 3, 12, 16)
    np.testing.assert_array_equal(images[2, :, 0, 0], [0.5, 0, -0.5])
    np.testing.assert_allclose(labels[0, 0, 0, 3:5], [4 / WIDTH, 3 / HEIGHT], rtol=1e-6)


def test_a_mean_file_has_the_size_of_the_top(source: str, tmp_path: Path) -> None:
    mean = np.random.default_rng(0).random((1, 3, HEIGHT, WIDTH)).astype(np.float32)
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(array_to_blob(mean).SerializeToString())
    plain, more = "transform_param {", f"transform_param {{ mean_file: '{path}'"
    tops = []
    for text in (plain, more):
        with data_layer(definition(source, f"{text} }}")) as layer:
            tops.append(read(layer, 1)[0][0])
    np.testing.assert_allclose(tops[0] - tops[1], np.repeat(mean, 4, 0), atol=1e-5)
    small = f"{more} crop_size: 20 }}"
    assert "the images come out with 3x20x20" in refused(definition(source, small))


def test_draws_depend_on_seed_and_record_alone(source: str) -> None:
    def tops(context: Context, batch: int, count: int) -> list[list[np.ndarray]]:
        with data_layer(definition(source, AUGMENTED, batch), train=True, context=context) as layer:
            return read(layer, count)

    whole = tops(Context(seed=3), 6, 2)
    halves = tops(Context(seed=3), 3, 4)
    for index, (images, labels) in enumerate(halves):
        part = slice(3 * (index % 2), 3 * (index % 2) + 3)
        np.testing.assert_array_equal(images, whole[index // 2][0][part])
        rows = whole[index // 2][1][0, 0]
        mine = rows[(rows[:, 0] >= part.start) & (rows[:, 0] < part.stop)]
        np.testing.assert_array_equal(labels[0, 0, :, 1:], mine[:, 1:])
    other = tops(Context(seed=4), 6, 2)
    assert (other[0][0] != whole[0][0]).any()
    # The same record, another time.
    assert (whole[0][0][1] != whole[1][0][2]).any()


def test_ranks_share_the_records(source: str) -> None:
    ranks = []
    for rank in range(2):
        context = Context(seed=3, rank=rank, world_size=2)
        with data_layer(definition(source, AUGMENTED, 3), train=True, context=context) as layer:
            ranks.append(read(layer, 1)[0][0])
    with data_layer(definition(source, AUGMENTED, 6), train=True, context=Context(seed=3)) as layer:
        ((images, _),) = read(layer, 1)
    np.testing.assert_array_equal(images[0::2], ranks[0])
    np.testing.assert_array_equal(images[1::2], ranks[1])


def test_reading_goes_on_where_it_stopped(source: str) -> None:
    text = definition(source, AUGMENTED)
    with data_layer(text, train=True, context=Context(seed=3)) as layer:
        before = read(layer, 4)
        position = layer.position()
    with data_layer(text, train=True, context=Context(seed=3)) as layer:
        layer.seek(position - 8)
        for wanted, found in zip(before[2:], read(layer, 2), strict=True):
            for one, other in zip(wanted, found, strict=True):
                np.testing.assert_array_equal(one, other)


def test_shuffled_rounds(source: str) -> None:
    text = definition(source, batch=7).replace("batch_size", "shuffle: true batch_size")
    with data_layer(text, context=Context(seed=3)) as layer:
        rounds = [images[:, 0, 0, 0].astype(int).tolist() for images, _ in read(layer, 3)]
    assert all(sorted(each) == list(range(7)) for each in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    leveldb = text.replace("LMDB", "LEVELDB")
    assert "data_param.shuffle: needs an LMDB" in refused(leveldb)


def test_images_of_many_sizes_one_by_one(source: str) -> None:
    more = "transform_param { resize_param { height: 12 width: 12 resize_mode: FIT_SMALL_SIZE } }"
    with data_layer(definition(source, more, batch=1)) as layer:
        (images, _), *_ = read(layer, 1)
    assert images.shape == (1, 3, 12, 16)
    assert "batch_size: must be 1 for resize_mode FIT_SMALL_SIZE" in refused(
        definition(source, more)
    )


SIZES = "".join(f"resize_param {{ height: {n} width: {n} prob: 0.5 }} " for n in (12, 16))


def test_several_sizes_in_turn(source: str) -> None:
    """One for ten batches, the same on all ranks and after a resume."""
    text = definition(source, f"transform_param {{ {SIZES} }}", batch=2)
    with data_layer(text, context=Context(seed=3)) as layer:
        assert layer.reshape([])[0] == (2, 3, 12, 12)
        sides = [images.shape[2] for images, _ in read(layer, 80)]
    assert all(len(set(sides[at : at + 10])) == 1 for at in range(0, 80, 10))
    assert set(sides) == {12, 16}
    with data_layer(text, context=Context(seed=3)) as layer:
        layer.seek(2 * 25)
        assert [images.shape[2] for images, _ in read(layer, 30)] == sides[25:55]
    with data_layer(text, context=Context(seed=3)) as layer:
        layer.seek(5)  # where batches of another size ended
        assert [images.shape[2] for images, _ in read(layer, 70)] == sides[2:72]
    half = text.replace("batch_size: 2", "batch_size: 1")
    for rank in range(2):
        context = Context(seed=3, rank=rank, world_size=2)
        with data_layer(half, train=True, context=context) as layer:
            assert [images.shape[2] for images, _ in read(layer, 80)] == sides


def test_rows_of_centres_and_sides(source: str) -> None:
    more = "annotated_data_param { yolo_data_type: 1 }"
    with data_layer(definition(source, more)) as layer:
        assert layer.reshape([])[1] == (4, 1, 300, 5)
        ((_, labels),) = read(layer, 1)
    assert labels.shape == (4, 1, 300, 5)
    # Pictures 0 and 3 are empty, 1 and 2 hold one and two objects of sides 8.
    sides = [8 / WIDTH, 8 / HEIGHT]
    np.testing.assert_allclose(labels[1, 0, 0], [1, 8 / WIDTH, 7 / HEIGHT, *sides], rtol=1e-6)
    np.testing.assert_allclose(labels[2, 0, 0], [0, 8 / WIDTH, 8 / HEIGHT, *sides], rtol=1e-6)
    np.testing.assert_allclose(labels[2, 0, 1], [0, 18 / WIDTH, 8 / HEIGHT, *sides], rtol=1e-6)
    assert not labels[[0, 3]].any() and not labels[1, 0, 1:].any() and not labels[2, 0, 2:].any()


def test_labels_without_boxes(tmp_path: Path) -> None:
    path = tmp_path / "labels"
    with create_database(str(path), "lmdb") as writer:
        for number in range(3):
            record = scene(number)
            record.ClearField("type")
            writer.put(str(number).encode(), record.SerializeToString())
        writer.commit()
    with data_layer(definition(str(path), batch=3)) as layer:
        ((_, labels),) = read(layer, 1)
    assert labels.tolist() == [0, 1, 2]
    # The definition may say that there are boxes; the records have to say it, too.
    boxes = definition(str(path), "annotated_data_param { anno_type: BBOX }")
    with recorded_log() as messages:
        assert "a record has no type" in refused(boxes, batches=1)
    assert "type stored in AnnotatedDatum is shadowed." in messages


FAULTS = {
    "bytes": "a record is not an AnnotatedDatum",
    "pixels": "holds 5 values",
    "box": "the box of object 1 is 0.1 0.2 nan 0.4; it must be finite",
    "gray": "transform_param { force_color: true }",
    "size": "give a resize_param, or a crop_size",
}


@pytest.mark.parametrize(
    ("fault", "bad"), [*((fault, 1) for fault in FAULTS), ("bytes", 0), ("box", 0)]
)
def test_a_bad_record_is_named(fault: str, bad: int, tmp_path: Path) -> None:
    record = scene(2)
    if fault == "pixels":
        record.datum.data = b"12345"
    elif fault == "gray":
        record.datum.channels = 1
        record.datum.data = bytes(HEIGHT * WIDTH)
    elif fault == "size":
        record.datum.height -= 1
        record.datum.data = bytes(3 * (HEIGHT - 1) * WIDTH)
    box = record.annotation_group[0].annotation[0].bbox
    box.xmin, box.ymin, box.xmax, box.ymax = 0.1, 0.2, 0.3, 0.4
    if fault == "box":
        box.xmax = float("nan")
    values = [scene(2).SerializeToString()] * 3
    values[bad] = b"\xff" if fault == "bytes" else record.SerializeToString()
    path = tmp_path / "scenes"
    with create_database(str(path), "lmdb") as writer:
        for number, value in enumerate(values):
            writer.put(f"key {number}".encode(), value)
        writer.commit()
    said = refused(definition(str(path), batch=3), batches=1)
    assert said.startswith(f"{path}: layer 'layer': record {bad} (key 'key {bad}'): ")
    assert FAULTS[fault] in said


@pytest.mark.parametrize("bad", [0, 1])
def test_a_record_with_too_many_objects_is_named(bad: int, tmp_path: Path) -> None:
    records = [scene(2), scene(2)]
    group = records[bad].annotation_group[0].annotation
    group.extend([group[0]] * 300)
    path = tmp_path / "scenes"
    with create_database(str(path), "lmdb") as writer:
        for number, record in enumerate(records):
            writer.put(f"key {number}".encode(), record.SerializeToString())
        writer.commit()
    text = definition(str(path), "annotated_data_param { yolo_data_type: 1 }", batch=2)
    said = refused(text, batches=1)
    assert f"record {bad} (key 'key {bad}'): a record has 302 objects; 300 at most" in said


def test_images_without_their_labels(source: str) -> None:
    with data_layer(definition(source), tops=1) as layer:
        ((images,),) = read(layer, 1)
    assert images.shape == (4, 3, HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("transform_param { crop_size: 30 }", "a crop of 30x30 is larger than an image of 24x32"),
        ("transform_param { mean_value: 1 mean_value: 2 }", "mean_value: is given 2 times for"),
        ("transform_param { mean_value: 1 mean_file: 'x' }", "has both mean_file and mean_value"),
        ("transform_param { resize_param { } }", "resize_param: needs a height and a width"),
        (f"transform_param {{ {SIZES * 2} }}", "a prob in each of 4; numbers of a sum of 1"),
        (f"transform_param {{ {SIZES} mean_file: 'x' }}", "mean_file: has one size, images come"),
        ("annotated_data_param { yolo_data_jitter: 1 }", "yolo_data_jitter: 0 to less than 1"),
    ],
)
def test_wrong_settings_are_named(more: str, message: str, source: str) -> None:
    assert message in refused(definition(source, more))


def test_wrong_sources_are_named(source: str, tmp_path: Path) -> None:
    assert "data_param.source: must name a database" in refused(definition(""))
    assert "batch_size: must be given, and be positive" in refused(definition(source, batch=0))
    assert "there is no such database" in refused(definition(str(tmp_path / "gone")))


@pytest.mark.parametrize("field", ["resize_param { }", "crop_h: 3", "emit_constraint { }"])
def test_other_layers_say_that_they_do_not_do_this(field: str) -> None:
    mnist = str(GOLDEN / "data" / "mnist500_test_lmdb")
    text = definition(mnist, f"transform_param {{ {field} }}").replace("AnnotatedData", "Data")
    name = field.split(":")[0].split()[0]
    assert f"transform_param.{name}: is for layers of type AnnotatedData only" in refused(text)
