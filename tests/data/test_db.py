"""Databases by name, and LMDB."""

from __future__ import annotations

import errno
import os
import resource
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from caffe_dns.data import database
from caffe_dns.data.db import create_database, open_database
from caffe_dns.errors import CaffeError
from tests.oracle import GOLDEN


def contents(path: Path, backend: str = "lmdb") -> list[tuple[bytes, bytes]]:
    with open_database(str(path), backend) as database:
        return [(key, bytes(value)) for key, value in database.records()]


def test_writes_what_it_reads_in_the_order_of_the_keys(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with create_database(str(path)) as writer:
        writer.put(b"2", b"b")
        writer.commit()
        writer.put(b"1", b"a")
        writer.put(b"2", b"c")
        assert not path.exists()
    assert contents(path) == [(b"1", b"a"), (b"2", b"c")]
    assert [entry.name for entry in tmp_path.iterdir()] == ["new"]


def test_grows_beyond_the_first_map(tmp_path: Path) -> None:
    path = tmp_path / "large"
    value = np.random.default_rng(1).bytes(1 << 20)
    with create_database(str(path)) as writer:
        for number in range(25):
            writer.put(b"%02d" % number, value)
            if number == 4:
                writer.commit()
    with open_database(str(path)) as database:
        assert database.entries() == 25
        assert all(bytes(found) == value for _, found in database.records())


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
def test_large_records_do_not_wait_in_memory(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "MOST_PENDING", 3 << 20)
    value = np.random.default_rng(1).bytes(1 << 20)
    with create_database(str(tmp_path / "new"), backend) as writer:
        tracemalloc.start()
        for number in range(32):
            writer.put(b"%02d" % number, value[number:])
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert 3 << 20 < peak < 9 << 20  # what waits, a record, its block and the checksum's tables
    assert contents(tmp_path / "new", backend) == [(b"%02d" % n, value[n:]) for n in range(32)]


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), create_database(str(tmp_path / "half")) as writer:
        writer.put(b"1", b"a")
        writer.commit()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_is_cut_short_may_be_a_full_disk(tmp_path: Path) -> None:
    """There, too, as much is written as there is room for, and LMDB has one word for all that."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(CaffeError) as caught, create_database(str(tmp_path / "db")) as writer:
            writer.put(b"1", bytes(100_000))
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limit[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    said = (
        f"{tmp_path}/db: cannot be written: mdb_txn_commit: Input/output error, or the disk is full"
    )
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("backend", ["lmdb", "leveldb"])
def test_where_nothing_can_be_synced(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    with create_database(str(tmp_path / "new"), backend) as writer:
        writer.put(b"1", b"a")
    assert contents(tmp_path / "new", backend) == [(b"1", b"a")]


def test_the_same_database_can_be_open_twice() -> None:
    path = str(GOLDEN / "tools" / "resized_lmdb")
    with open_database(path) as one, open_database(path) as other:
        first, second = one.cursor(), other.cursor()
        assert first.first()
        assert second.first()
        assert second.next()
        assert first.key() == b"00000000_im00.jpg"
        assert second.key() == b"00000001_im01.png"
        one.close()
        assert other.entries() == 12
        assert bytes(second.value())


def test_a_replaced_database_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "db"
    for value in (b"old", b"new"):
        if path.exists():
            path.rename(tmp_path / "away")
        with create_database(str(path)) as writer:
            writer.put(b"1", value)
        with open_database(str(path)) as database:
            assert [bytes(found) for _, found in database.records()] == [value]


def test_says_what_is_wrong_with_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(b"x" * 10000)
    lmdb = str(GOLDEN / "tools" / "resized_lmdb")
    leveldb = str(GOLDEN / "tools" / "resized_leveldb")
    cases = [
        (str(tmp_path / "none"), "lmdb", "there is no such database"),
        (str(tmp_path / "file"), "lmdb", "it is a file, not a folder"),
        (str(tmp_path / "empty"), "lmdb", "holds neither an LMDB nor a LevelDB"),
        (str(tmp_path / "damaged"), "lmdb", "cannot be read as an LMDB"),
        (lmdb, "leveldb", "is of the backend 'lmdb', not 'leveldb'"),
        (leveldb, "lmdb", "is of the backend 'leveldb', not 'lmdb'"),
    ]
    for path, backend, message in cases:
        with pytest.raises(CaffeError) as caught:
            open_database(path, backend)
        assert str(caught.value).startswith(f"{path}: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(CaffeError, match=r"unknown .* 'lmbd' \(did you mean 'lmdb'\?\)"):
        open_database(lmdb, "lmbd")


def test_says_why_a_database_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match="exists already"):
        create_database(str(tmp_path))
    with pytest.raises(CaffeError, match="there is no folder"):
        create_database(str(tmp_path / "none" / "db"))


def test_announces_what_it_opens(capfd: pytest.CaptureFixture[str]) -> None:
    path = str(GOLDEN / "tools" / "resized_lmdb")
    open_database(path).close()
    assert capfd.readouterr().err.endswith(f"] Opened lmdb {path}\n")
    open_database(path, announce=False).close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_file_can_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match="there is no such database"):
        open_database(str(tmp_path / name))
    with pytest.raises(CaffeError, match="cannot be"):
        create_database(str(tmp_path / name))
