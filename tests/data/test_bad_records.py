"""Records that cannot be decoded are passed over, up to as many as was said."""

from __future__ import annotations

import shutil
from pathlib import Path

import lmdb
import numpy as np
import pytest

from caffe_dns.data.bad_records import BadRecords, ForgivingSource
from caffe_dns.data.db import open_database
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import Datum
from tests.cli.harness import complaint, run
from tests.oracle import GOLDEN
from tests.solver.harness import small_net

#: What is broken in the copies of the recorded database.
BROKEN = (0, 5, 6)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """The recorded training database, some of its records a byte short."""
    path = tmp_path / "broken_lmdb"
    shutil.copytree(GOLDEN / "data/mnist1k_train_lmdb", path)
    with lmdb.open(str(path), map_size=1 << 24, lock=False) as env, env.begin(write=True) as all_:
        keys = [key for key, _ in all_.cursor()]
        for index in BROKEN:
            datum = Datum.FromString(all_.get(keys[index]))
            datum.data = datum.data[:-1]
            all_.put(keys[index], datum.SerializeToString())
    return path


def source(database: Path, limit: int) -> ForgivingSource:
    inner = DatabaseSource(open_database(str(database), "lmdb", announce=False))
    return ForgivingSource(inner, BadRecords(limit))


def values(database: Path, limit: int, records: range) -> list[bytes]:
    forgiving = source(database, limit)
    try:
        items = list(forgiving.load(forgiving.fetch_all(records)))
        return [forgiving.decode(item)[0].tobytes() for item in items]
    finally:
        forgiving.close()


def originals() -> list[bytes]:
    path = str(GOLDEN / "data/mnist1k_train_lmdb")
    with lmdb.open(path, lock=False, readonly=True) as env, env.begin() as all_:
        return [Datum.FromString(value).data for _, value in all_.cursor()]


def test_others_stand_in_for_them(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = originals()
    wanted = [whole[index] for index in (1, 1, 2, 3, 4, 4, 4, 7)]
    assert values(database, 3, range(8)) == wanted
    said = capfd.readouterr().err.splitlines()
    for number, (index, line) in enumerate(zip(BROKEN, said, strict=True), 1):
        assert f"bad record {number} of at most 3: {database}: record {index} (key" in line
    assert values(database, 3, range(10, 14)) == whole[10:14]


def test_one_too_many_is_an_error(database: Path) -> None:
    with pytest.raises(CaffeError, match=r"record 6 \(key '00000006'\).*; 2 were passed over"):
        values(database, 2, range(8))


def test_a_batch_without_a_whole_record_takes_the_next_one(database: Path) -> None:
    """As one of a single record."""
    whole = originals()
    assert values(database, 9, range(5, 7)) == [whole[7]] * 2
    assert values(database, 9, range(5, 6)) == [whole[7]]
    with pytest.raises(CaffeError, match=r"record 6 .*; 1 were passed over"):
        values(database, 1, range(5, 6))


def test_a_database_needs_a_whole_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with lmdb.open(str(tmp_path / "db"), lock=False) as env, env.begin(write=True) as all_:
        for index in range(5):
            all_.put(b"%d" % index, b"no Datum")
    with pytest.raises(CaffeError, match=r"record 1 \(key '1'\): a record is not a Datum"):
        values(tmp_path / "db", 10**9, range(1, 3))
    assert capfd.readouterr().err.count("Skipping bad record") == 5


def test_each_counts_once(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    forgiving = source(database, 3)
    for _ in range(3):
        forgiving.fetch_all(range(8))
        forgiving.fetch_all(range(1000, 1008))  # the same, in the next round
    forgiving.close()
    assert capfd.readouterr().err.count("Skipping bad record") == 3


def test_training_goes_on(database: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = database.parent
    net = small_net().replace(f"{GOLDEN}/data/mnist1k_train_lmdb", str(database))
    (folder / "net.prototxt").write_text(net)
    (folder / "solver.prototxt").write_text(
        f"net: '{folder}/net.prototxt' base_lr: 0.01 lr_policy: 'fixed' max_iter: 2 "
        f"snapshot_prefix: '{folder}/s' solver_mode: CPU"
    )
    command = ["train", "--solver", f"{folder}/solver.prototxt"]
    assert "record 0 (key '00000000')" in complaint(command, capfd)
    assert "record 6 (key '00000006')" in complaint([*command, "--skip-bad-records", "2"], capfd)
    done = run([*command, "--skip-bad-records=3"], capfd)
    assert done.code == 0
    passed = [line for line in done.messages if line.startswith("Skipping bad record")]
    assert len(passed) == 3
    assert (folder / "s_iter_2.solverstate").exists()


def test_pixels_of_the_stand_in_are_those_of_a_batch(database: Path) -> None:
    """Also where all records are decoded at once, and kept for the next round."""
    forgiving = source(database, 3)
    records = np.arange(8)
    alike = forgiving.decode_alike(forgiving.fetch_all(records.tolist()), records)
    forgiving.close()
    assert alike is not None
    whole = originals()
    assert [image.tobytes() for image in alike[0]] == [
        whole[index] for index in (1, 1, 2, 3, 4, 4, 4, 7)
    ]
