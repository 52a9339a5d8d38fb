"""`dns compute_image_mean` against the mean and the log of Caffe's tool."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_dns.data.db import create_database
from caffe_dns.proto.blobs import blob_to_array
from caffe_dns.proto.caffe_pb2 import BlobProto, Datum
from caffe_dns.proto.text import read_binary
from tests.cli.harness import complaint, run_well

pytestmark = pytest.mark.usefixtures("in_golden_folder")

Capture = pytest.CaptureFixture[str]


def make_database(path: Path, datums: list[Datum]) -> str:
    with create_database(str(path)) as writer:
        for index, datum in enumerate(datums):
            writer.put(b"%05d" % index, datum.SerializeToString())
    return str(path)


@pytest.mark.parametrize("flags", [["tools/resized_lmdb"], ["tools/resized_leveldb"]])
def test_the_mean_is_caffes_byte_by_byte(flags: list[str], tmp_path: Path, capfd: Capture) -> None:
    target = tmp_path / "mean.binaryproto"
    backend = flags[0].rpartition("_")[2]
    run_well(["compute_image_mean", f"-backend={backend}", *flags, str(target)], capfd)
    assert target.read_bytes() == Path("tools/mean.binaryproto").read_bytes()


def test_the_log_is_caffes(tmp_path: Path, capfd: Capture) -> None:
    target = str(tmp_path / "mean.binaryproto")
    result = run_well(["compute_image_mean", "tools/resized_lmdb", target], capfd)
    log = Path("logs/compute_image_mean.log").read_text().splitlines()
    theirs = [line.partition("] ")[2].replace("tools/mean.binaryproto", target) for line in log]
    assert result.messages == theirs


def test_without_an_output_file_it_only_says(capfd: Capture) -> None:
    result = run_well(["compute_image_mean", "tools/gray_lmdb"], capfd)
    assert result.messages[3] == "Number of channels: 1"
    assert result.messages[4].startswith("mean_value channel [0]: ")


def test_float_data_and_encoded_images(tmp_path: Path, capfd: Capture) -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=(70, 2, 3, 4)).astype(np.float32)
    datums = [Datum(channels=2, height=3, width=4, float_data=v.ravel().tolist()) for v in values]
    source = make_database(tmp_path / "floats", datums)
    target = tmp_path / "mean.binaryproto"
    run_well(["compute_image_mean", source, str(target)], capfd)
    mean = blob_to_array(read_binary(target, BlobProto))
    np.testing.assert_allclose(mean[0], values.astype(np.float64).mean(0), atol=1e-6)

    images = ["convert_imageset", "--encode_type=png", "--resize_height=24", "--resize_width=20"]
    encoded = str(tmp_path / "encoded")
    run_well([*images, "tools/images/", "tools/list.txt", encoded], capfd)
    result = run_well(["compute_image_mean", encoded, str(target)], capfd)
    assert result.messages[1] == "Decoding Datum"
    assert target.read_bytes() == Path("tools/mean.binaryproto").read_bytes()


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 80, 81)])  # those of the file are mapped
def test_many_records_are_summed_in_their_order(
    shape: tuple[int, int, int], tmp_path: Path, capfd: Capture
) -> None:
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (150, *shape), np.uint8)
    channels, height, width = shape
    datums = [Datum(channels=channels, height=height, width=width, label=2 * n) for n in range(150)]
    total = np.zeros(shape, np.float32)
    for index, (datum, image) in enumerate(zip(datums, images, strict=True)):
        # Sums that are rounded, after records that can be summed up together.
        values = image if index < 80 else image + np.float32(1 / 3)
        total += values
        if index < 80:
            datum.data = image.tobytes()
        else:
            datum.float_data.extend(values.ravel().tolist())
    source = make_database(tmp_path / "mixed", datums)
    target = tmp_path / "mean.binaryproto"
    run_well(["compute_image_mean", source, str(target)], capfd)
    mean = blob_to_array(read_binary(target, BlobProto))
    np.testing.assert_array_equal(mean[0], total / np.float32(150))

    datums[70].data, datums[70].width = datums[70].data[: channels * height], 1
    source = make_database(tmp_path / "wrong", datums)
    said = complaint(["compute_image_mean", source], capfd)
    assert "record 70 (key '00070'): Incorrect data field size" in said


def test_wrong_input(tmp_path: Path, capfd: Capture) -> None:
    def said(*arguments: str) -> str:
        return complaint(["compute_image_mean", *arguments], capfd)

    target = str(tmp_path / "mean.binaryproto")
    assert "record 1 (key '00000001_im01.png'): Incorrect data field" in said(
        "tools/encoded_lmdb", target
    )
    assert "no such database" in said("tools/gone_lmdb", target)
    assert "neither" in said("tools/images", target)
    assert "'leveldb'" in said("tools/resized_leveldb", target)
    assert "'leveldb'" in said("-backend=leveldbb", "tools/resized_leveldb", target)
    assert "no records" in said(make_database(tmp_path / "empty", []), target)
    assert "no folder" in said("tools/resized_lmdb", str(tmp_path / "no" / "mean"))
    # Before the database is read, of which something is wrong, too.
    assert "File name too long" in said("tools/encoded_lmdb", str(tmp_path / ("a" * 240)))
    assert "'INPUT_DB'" in said()
    junk = tmp_path / "junk"
    with create_database(str(junk)) as writer:
        writer.put(b"a", b"\xff\xff")
    assert f"{junk}: record 0 (key 'a'): a record is not a Datum" in said(str(junk), target)
    assert not Path(target).exists()
