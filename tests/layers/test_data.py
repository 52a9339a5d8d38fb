"""Data: Caffe's batches, positions, ranks, and what can be wrong with a database."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from caffe_dns.data.datum import parse_datum
from caffe_dns.data.db import create_database, open_database
from caffe_dns.layers import Context
from caffe_dns.layers.data import LEAST_IN_ROUND
from caffe_dns.proto.caffe_pb2 import Datum, NetParameter
from tests.layers.data_harness import data_layer, labels, read, refused
from tests.oracle import GOLDEN

CASES = sorted(path.stem for path in (GOLDEN / "data_layers").glob("*.prototxt"))
MNIST = f"type: 'Data' data_param {{ source: '{GOLDEN}/data/mnist1k_train_lmdb' backend: LMDB"
NUMBERS = 23


@pytest.fixture
def numbered(tmp_path: Path) -> str:
    """A definition, still open, of a database whose record n is of the pixel n and the label n."""
    with create_database(str(tmp_path / "numbered")) as writer:
        for number in range(NUMBERS):
            datum = Datum(channels=1, height=1, width=1, data=bytes([number]), label=number)
            writer.put(b"%04d" % number, datum.SerializeToString())
    return f"type: 'Data' data_param {{ source: '{tmp_path}/numbered' backend: LMDB "


@pytest.fixture(params=[LEAST_IN_ROUND, 1])
def some_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches that are read one by one, and as many together as a small database allows."""
    monkeypatch.setattr("caffe_dns.layers.data.LEAST_IN_ROUND", request.param)


@pytest.mark.usefixtures("some_at_once")
@pytest.mark.parametrize("name", CASES)
def test_gives_caffe_s_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    net = text_format.Parse(Path(f"data_layers/{name}.prototxt").read_text(), NetParameter())
    arrays = np.load(f"data_layers/{name}.npz")
    with data_layer(text_format.MessageToString(net.layer[0])) as layer:
        for index, (data, label) in enumerate(read(layer, 6)):
            assert np.array_equal(label, arrays[f"label:{index}"])
            expected = arrays[f"data:{index}"]
            assert data.shape == expected.shape
            if name == "data_encoded":  # JPEG decoders may round differently
                assert np.abs(data - expected).max() <= 1
            else:
                assert np.array_equal(data, expected)


def test_small_batches_are_read_together_on_a_cpu() -> None:
    for size, at_once in ((1, 8), (3, 5), (16, 1)):
        with data_layer(f"{MNIST} batch_size: {size} }}") as layer:
            assert layer.batches_at_once == at_once
    context = Context(skip_bad_records=1)
    with data_layer(f"{MNIST} batch_size: 1 }}", context=context) as layer:
        assert layer.batches_at_once == 1


def test_shapes_and_log(capfd: pytest.CaptureFixture[str]) -> None:
    with data_layer(f"{MNIST} batch_size: 32 }} transform_param {{ crop_size: 20 }}") as layer:
        assert layer.reshape([]) == [(32, 1, 20, 20), (32,)]
        messages = [line.split("] ", 1)[1] for line in capfd.readouterr().err.splitlines()]
        assert messages == [
            f"Opened lmdb {GOLDEN}/data/mnist1k_train_lmdb",
            "output data size: 32,1,20,20",
        ]
    with data_layer(f"{MNIST} batch_size: 3 }}", tops=1) as layer:
        assert layer.reshape([]) == [(3, 1, 28, 28)]
        assert [top.shape for top in read(layer, 1)[0]] == [(3, 1, 28, 28)]


@pytest.mark.usefixtures("some_at_once")
def test_the_thread_starts_with_the_first_forward_pass(numbered: str) -> None:
    with data_layer(numbered + "batch_size: 4 }") as layer:
        assert layer.position() == 0
        layer.seek(21)
        assert labels(layer, 2) == [[21, 22, 0, 1], [2, 3, 4, 5]]
        assert layer.position() == 29
        layer.close()
        assert labels(layer, 1) == [[6, 7, 8, 9]]
        layer.seek(5 * NUMBERS + 7)
        assert labels(layer, 1) == [[7, 8, 9, 10]]


@pytest.mark.usefixtures("some_at_once")
@pytest.mark.parametrize("start", [0, 6, 40])
def test_ranks_share_the_records_in_training_only(numbered: str, start: int) -> None:
    seen = []
    for rank in range(3):
        context = Context(rank=rank, world_size=3)
        with data_layer(numbered + "batch_size: 2 }", train=True, context=context) as layer:
            layer.seek(start)
            seen.append([label for batch in labels(layer, 4) for label in batch])
            assert layer.position() == start + 4 * 2 * 3
    for rank, own in enumerate(seen):
        first = next(n for n in range(start, start + 3) if n % 3 == rank)
        assert own == [(first + 3 * index) % NUMBERS for index in range(8)]
    with data_layer(numbered + "batch_size: 2 }", context=Context(rank=0, world_size=3)) as layer:
        assert labels(layer, 2) == [[0, 1], [2, 3]]
        assert layer.position() == 4


@pytest.mark.usefixtures("some_at_once")
def test_a_resumed_run_sees_the_same_crops() -> None:
    text = f"{MNIST} batch_size: 5 }} transform_param {{ crop_size: 21 mirror: true }}"
    with data_layer(text, train=True, context=Context(seed=9)) as layer:
        whole = read(layer, 4)
    with data_layer(text, train=True, context=Context(seed=9)) as layer:
        layer.seek(10)
        rest = read(layer, 2)
    assert all(np.array_equal(a, b) for a, b in zip(whole[2][0], rest[0][0], strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(whole[3][0], rest[1][0], strict=True))
    with data_layer(text, train=True, context=Context(seed=10)) as layer:
        assert not np.array_equal(read(layer, 1)[0][0], whole[0][0])


def test_random_skip_is_drawn_once_and_leaves_the_position_alone(numbered: str) -> None:
    text = numbered + "batch_size: 2 rand_skip: 20 }"
    with data_layer(text, context=Context(seed=2)) as layer:
        first, second = labels(layer, 2)
        assert 0 <= first[0] < 20
        assert second[0] == (first[0] + 2) % NUMBERS
        assert layer.position() == 4
    with data_layer(text, context=Context(seed=2)) as layer:
        layer.seek(2)
        assert labels(layer, 1) == [second]


def test_batches_of_one_may_be_of_any_size(tmp_path: Path) -> None:
    with create_database(str(tmp_path / "db")) as writer:
        for n in range(3):
            datum = Datum(channels=1, height=2 + n, width=3, data=bytes(6 + 3 * n), label=n)
            writer.put(b"%d" % n, datum.SerializeToString())
    text = f"type: 'Data' data_param {{ source: '{tmp_path}/db' backend: LMDB batch_size:"
    with data_layer(text + "1 }") as layer:
        assert [batch[0].shape[2] for batch in read(layer, 4)] == [2, 3, 4, 2]
    assert "in one batch; resize them" in refused(text + "2 }", batches=1)


def test_forced_colour_needs_encoded_records(capfd: pytest.CaptureFixture[str]) -> None:
    with data_layer(f"{MNIST} batch_size: 1 }} transform_param {{ force_color: true }}") as layer:
        assert layer.reshape([])[0] == (1, 1, 28, 28)
    assert "force_color and force_gray only for encoded datum" in capfd.readouterr().err


def test_an_error_in_a_later_record_comes_when_its_turn_does(tmp_path: Path) -> None:
    good = Datum(channels=1, height=1, width=1, data=b"a", label=1).SerializeToString()
    with create_database(str(tmp_path / "db")) as writer:
        for n in range(5):
            writer.put(b"%d" % n, good if n < 4 else b"\x22\x09x")
    text = f"type: 'Data' data_param {{ source: '{tmp_path}/db' backend: LMDB batch_size: 2 }}"
    with data_layer(text) as layer:
        assert labels(layer, 2) == [[1, 1], [1, 1]]
    assert "layer 'layer': record 4 (key '4'): a record is not a Datum" in refused(text, batches=3)


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("}", "data_param.batch_size: must be given, and be positive"),
        ("batch_size: 0 }", "data_param.batch_size: must be given, and be positive"),
        ("batch_size: 1 } transform_param { crop_size: 29 }", "larger than an image of 28x28"),
        ("batch_size: 1 } transform_param { mean_file: 'none' }", "none cannot be read"),
        (
            f"batch_size: 1 }} transform_param {{ mean_file: '{GOLDEN}/tools/mean.binaryproto' }}",
            "transform_param.mean_file: the mean is of 3x24x20, an image here of 1x28x28",
        ),
    ],
)
def test_wrong_settings(rest: str, message: str) -> None:
    assert message in refused(MNIST + " " + rest)


def test_wrong_sources(tmp_path: Path) -> None:
    create_database(str(tmp_path / "empty")).close()
    assert "data_param.source: must name a database" in refused(
        "type: 'Data' data_param { batch_size: 1 }"
    )
    for source, message in [
        (tmp_path / "none", "there is no such database"),
        (tmp_path, "is not a database: the folder holds neither an LMDB nor a LevelDB"),
        (tmp_path / "empty", "the database has no records"),
        (
            GOLDEN / "tools" / "resized_leveldb",
            "is of the backend 'leveldb', not 'lmdb' (backend: LEVELDB, or -backend leveldb)",
        ),
    ]:
        text = f"type: 'Data' data_param {{ source: '{source}' backend: LMDB batch_size: 1 }}"
        assert refused(text) == f"{source}: layer 'layer': {message}"


def test_takes_one_or_two_tops() -> None:
    assert "1 to 2 top blob" in refused(f"{MNIST} batch_size: 1 }}", tops=3)


def test_both_colours_at_once_are_refused() -> None:
    text = (
        f"type: 'Data' data_param {{ source: '{GOLDEN}/tools/encoded_lmdb' backend: LMDB "
        "batch_size: 1 } transform_param { force_color: true force_gray: true }"
    )
    assert "force_color and force_gray exclude each other" in refused(text)


def test_gray_from_encoded_records() -> None:
    text = (
        f"type: 'Data' data_param {{ source: '{GOLDEN}/tools/encoded_lmdb' backend: LMDB "
        "batch_size: 1 } transform_param { force_gray: true }"
    )
    with open_database(str(GOLDEN / "tools" / "encoded_lmdb")) as database:
        first = parse_datum(next(database.records())[1]).image(gray=True)
        with data_layer(text) as layer:
            assert np.array_equal(read(layer, 1)[0][0][0], first)


def test_shuffled_rounds(numbered: str) -> None:
    text = f"{numbered} batch_size: {NUMBERS} shuffle: true }}"
    with data_layer(text) as layer:
        rounds = labels(layer, 3)
        pixels = [int(pixel) for pixel in read(layer, 1)[0][0].flatten()]
    assert all(sorted(found) == list(range(NUMBERS)) for found in [*rounds, pixels])
    assert len({tuple(found) for found in [*rounds, pixels, list(range(NUMBERS))]}) == 5
    with data_layer(text) as layer:
        assert labels(layer, 3) == rounds
    with data_layer(text) as layer:
        # A resumed run goes on in the middle of a round.
        layer.seek(NUMBERS + 5)
        assert labels(layer, 1)[0] == [*rounds[1][5:], *rounds[2][:5]]


def test_ranks_share_a_shuffled_round(numbered: str) -> None:
    whole = f"{numbered} batch_size: 20 shuffle: true }} phase: TRAIN"
    with data_layer(whole) as layer:
        (expected,) = labels(layer, 1)
    half = whole.replace("batch_size: 20", "batch_size: 10")
    for rank in (0, 1):
        with data_layer(half, context=Context(rank=rank, world_size=2)) as layer:
            assert labels(layer, 1)[0] == expected[rank::2]


def test_only_an_lmdb_is_shuffled(tmp_path: Path) -> None:
    text = f"type: 'Data' data_param {{ source: '{GOLDEN}/tools/resized_leveldb' "
    message = refused(f"{text} batch_size: 1 backend: LEVELDB shuffle: true }}")
    assert message.endswith("data_param.shuffle: needs an LMDB (backend: LMDB)")
