"""LevelDB without LevelDB. `leveldb/` here was written by the real one, with Snappy:

`levels` in six sessions that overwrote and deleted, so that it has tables in two levels and a log;
`log` in one, so that all is in its log, one value of it across several blocks. The .json files say
what a reader must find: length and beginning of the SHA-1 of each value.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from caffe_dns.data.db import open_database
from caffe_dns.data.snappy import decompress
from caffe_dns.errors import CaffeError
from tests.data.test_db import contents
from tests.oracle import GOLDEN

FOLDER = Path(__file__).parent / "leveldb"


@pytest.mark.parametrize("name", ["levels", "log"])
def test_reads_what_leveldb_wrote(name: str) -> None:
    found = {
        key.decode(): [len(value), hashlib.sha1(value).hexdigest()[:12]]
        for key, value in contents(FOLDER / name, "leveldb")
    }
    assert found == json.loads((FOLDER / f"{name}.json").read_text())
    assert list(found) == sorted(found)


def test_reads_what_caffe_wrote() -> None:
    tools = GOLDEN / "tools"
    assert contents(tools / "resized_leveldb", "leveldb") == contents(tools / "resized_lmdb")


def test_starts_over() -> None:
    with open_database(str(FOLDER / "levels"), "leveldb") as database:
        assert database.entries() is None
        cursor = database.cursor()
        assert cursor.first()
        key, value = cursor.key(), bytes(cursor.value())
        while cursor.next():
            pass
        with pytest.raises(ValueError, match="on no record"):
            cursor.key()
        assert cursor.first()
        assert (cursor.key(), bytes(cursor.value())) == (key, value)


def test_a_log_that_was_cut_short_counts_as_far_as_it_goes(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    shutil.copytree(FOLDER / "log", folder)
    log = folder / "000003.log"
    log.write_bytes(log.read_bytes()[:-60000])
    found = contents(folder, "leveldb")
    assert [key for key, _ in found] == [b"%08d" % number for number in range(20)]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("000016.ldb", b"short", "damaged: too short for a table"),
        ("000016.ldb", b"x" * 5000, "is not a LevelDB table"),
        ("000016.ldb", None, "cannot be read: No such file or directory"),
        ("MANIFEST-000017", None, "cannot be read as a LevelDB: No such file or directory"),
        ("CURRENT", b"\xff\xff", "cannot be read as a LevelDB: CURRENT is damaged"),
    ],
)
def test_names_the_damaged_file(
    tmp_path: Path, file: str, content: bytes | None, message: str
) -> None:
    folder = tmp_path / "db"
    shutil.copytree(FOLDER / "levels", folder)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(CaffeError, match=message):
        contents(folder, "leveldb")


def test_a_table_with_a_damaged_block_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    shutil.copytree(FOLDER / "levels", folder)
    table = folder / "000016.ldb"
    data = bytearray(table.read_bytes())
    data[:400] = b"\xff" * 400
    table.write_bytes(data)
    with pytest.raises(CaffeError, match="damaged"):
        contents(folder, "leveldb")


def test_snappy() -> None:
    # A literal, a copy that repeats itself, and copies with offsets of two and four bytes.
    copies = b"\x15\x03" + b"\x0e\x02\x00" + b"\x0f\x0a\x00\x00\x00"
    block = b"\x19" + b"\x08abc" + copies + b"\x10vwxyz"
    assert decompress(block) == b"abcabcabcabc" + b"bcbc" + b"abca" + b"vwxyz"
    long = bytes(range(256)) * 2
    assert decompress(b"\x80\x04\xf4\xff\x01" + long) == long


@pytest.mark.parametrize(
    "block", [b"\x05\x08abc", b"\x03\x08ab", b"\x04\x15\x03", b"\x03\x00a\x11", b"\xff"]
)
def test_snappy_refuses_damaged_data(block: bytes) -> None:
    with pytest.raises(CaffeError, match="not Snappy data"):
        decompress(block)


def test_snappy_takes_no_more_memory_than_its_block_may_well_hold() -> None:
    """Three bytes are 64 when they are copies."""
    block = b"\xff\xff\xff\x7f" + b"\x00x" + b"\xfe\x01\x00" * 1000
    with pytest.raises(CaffeError, match="a block claims 268435455 bytes"):
        decompress(block)
