"""Writing LevelDB: what the real one has accepted, with all checksums verified."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from caffe_dns.data import leveldb_writer
from caffe_dns.data.crc32c import crc32c, masked_crc32c
from caffe_dns.data.db import create_database
from caffe_dns.errors import CaffeError
from tests.data.test_db import contents

#: Of the files below, after LevelDB 1.22 had read them in paranoid mode and found every record.
CHECKSUMS = {
    "000002.ldb": "f35107360a81a3d6",
    "000003.ldb": "42501f21c5e60184",
    "000004.ldb": "55ee49b837bb7c74",
    "CURRENT": "0f1bad70c7bd1e0a",
    "MANIFEST-000001": "36d521fcc5f9664b",
}


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"a", 0xC1D04330),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_crc32c_of_rfc_3720(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc
    assert masked_crc32c(data) != crc.to_bytes(4, "little")


@pytest.mark.parametrize("size", [3, 4, 255, 256, 257, 1000, 4096, 70001])
@pytest.mark.parametrize("piece", [1024, 1 << 20])
def test_crc32c_of_any_length(piece: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("caffe_dns.data.crc32c._PIECE", piece)
    data = bytes(number * number % 251 for number in range(size))
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    assert crc32c(data) == crc ^ 0xFFFFFFFF


def write_records(path: Path) -> dict[bytes, bytes]:
    """Records that fill several blocks and several tables."""
    records = {
        b"%08d_folder/%d.jpg" % (n, n % 7): bytes(n * k % 256 for k in range(n * 37 % 900))
        for n in range(300)
    }
    with create_database(str(path), "leveldb") as writer:
        for number, (key, value) in enumerate(records.items()):
            writer.put(key, value)
            if number % 100 == 99:
                writer.commit()
    return records


def test_writes_what_leveldb_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leveldb_writer, "_BLOCK_SIZE", 4096)
    monkeypatch.setattr(leveldb_writer, "_TABLE_SIZE", 50000)
    path = tmp_path / "db"
    records = write_records(path)
    assert contents(path, "leveldb") == list(records.items())
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in path.iterdir()
    }
    assert found == CHECKSUMS


def test_a_manifest_may_be_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leveldb_writer, "_BLOCK_SIZE", 1)
    monkeypatch.setattr(leveldb_writer, "_TABLE_SIZE", 0)
    records = {b"%05d" % n + b"x" * 2000: b"value" for n in range(40)}
    with create_database(str(tmp_path / "db"), "leveldb") as writer:
        for key, value in records.items():
            writer.put(key, value)
    assert (tmp_path / "db" / "MANIFEST-000001").stat().st_size > 3 * 32768
    assert contents(tmp_path / "db", "leveldb") == list(records.items())


def test_an_empty_database(tmp_path: Path) -> None:
    create_database(str(tmp_path / "db"), "leveldb").close()
    assert contents(tmp_path / "db", "leveldb") == []


def test_sorts_within_a_transaction_only(tmp_path: Path) -> None:
    path = tmp_path / "db"
    with create_database(str(path), "leveldb") as writer:
        for key, value in [(b"2", b"b"), (b"1", b"a"), (b"2", b"c")]:
            writer.put(key, value)
        writer.commit()
        writer.put(b"3", b"d")
    assert contents(path, "leveldb") == [(b"1", b"a"), (b"2", b"c"), (b"3", b"d")]
    with (
        pytest.raises(CaffeError, match="key b'1' comes after b'2'"),
        create_database(str(tmp_path / "other"), "leveldb") as writer,
    ):
        writer.put(b"2", b"")
        writer.commit()
        writer.put(b"1", b"")
    assert [entry.name for entry in tmp_path.iterdir()] == ["db"]
