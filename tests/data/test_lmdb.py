"""Reading LMDB files: all that the lmdb package writes, and nothing that could do harm.

The oracle is the lmdb package; files that it would not write are made here, page by page.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest

from caffe_dns.data.database import Database
from caffe_dns.data.db import open_database
from caffe_dns.data.sources import DatabaseSource
from caffe_dns.data.stored import in_memory
from caffe_dns.errors import CaffeError
from tests.oracle import GOLDEN

Record = tuple[bytes, bytes]


def write(path: Path, records: Sequence[Record]) -> str:
    with lmdb.open(str(path), map_size=1 << 28, lock=False) as environment:
        for start in range(0, len(records), 1000):
            with environment.begin(write=True) as transaction:
                for key, value in records[start : start + 1000]:
                    transaction.put(key, value)
    return str(path)


def oracle(path: str) -> list[Record]:
    with lmdb.open(path, readonly=True, lock=False) as environment, environment.begin() as reader:
        return [(bytes(key), bytes(value)) for key, value in reader.cursor()]


def read(path: str) -> list[Record]:
    with open_database(path, announce=False) as database:
        return [(key, bytes(value)) for key, value in database.records()]


def values_of(sizes: Sequence[int], keys: str = "%08d") -> list[Record]:
    generator = np.random.default_rng(1)
    return [(b"%b" % (keys % n).encode(), generator.bytes(size)) for n, size in enumerate(sizes)]


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [10] * 30000,  # a tree of three levels
        [2000, 2030, 2031, 2040, 2048, 3073, 4079, 4080, 4081, 8200, 0, 1] * 20,
        [200_000] * 12 + [3_000_000, 5, 1_100_000],
    ],
)
def test_reads_what_the_package_writes(tmp_path: Path, sizes: list[int]) -> None:
    path = write(tmp_path / "db", values_of(sizes))
    records = oracle(path)
    assert len(records) == len(sizes)
    assert read(path) == records
    with open_database(path, announce=False) as database:
        assert database.entries() == len(sizes)


def test_reads_what_was_changed_and_deleted(tmp_path: Path) -> None:
    """Pages in any order, free ones between them, and keys of many lengths."""
    draw = random.Random(2)
    path = str(tmp_path / "db")
    with lmdb.open(path, map_size=1 << 28, lock=False) as environment:
        for _ in range(20):
            with environment.begin(write=True) as transaction:
                for _ in range(100):
                    key = b"%d" % draw.randrange(500) * draw.randrange(1, 30)
                    if draw.random() < 0.3:
                        transaction.delete(key)
                    else:
                        transaction.put(key, draw.randbytes(draw.choice([5, 700, 3000, 9000])))
    assert read(path) == oracle(path)


@pytest.mark.parametrize("sizes", [[50] * 1000, [5000] * 400])
def test_takes_and_skips(tmp_path: Path, sizes: list[int]) -> None:
    records = values_of(sizes)
    with open_database(write(tmp_path / "db", records), announce=False) as database:
        cursor = database.cursor()
        place = 0
        assert cursor.first()
        for count in (1, 7, 100, 130, 3):
            taken = [bytes(value) for value in cursor.take(count)]
            assert taken == [value for _, value in records[place : place + count]]
            assert cursor.skip(20) == 20
            place += count - 1 + 20
            assert (cursor.key(), bytes(cursor.value())) == records[place]
        left = len(sizes) - 1 - place
        assert len(cursor.take(10_000)) == left + 1
        assert cursor.first()
        assert cursor.skip(len(sizes) - 1) == len(sizes) - 1
        assert cursor.key() == records[-1][0]
        assert not cursor.next()
        assert cursor.first()
        assert cursor.skip(len(sizes)) == len(sizes) - 1


def test_reads_a_folder_that_nobody_may_write_to(tmp_path: Path) -> None:
    path = write(tmp_path / "db", values_of([10, 5000]))
    expected = oracle(path)
    before = {entry: entry.stat().st_mtime_ns for entry in (tmp_path / "db").iterdir()}
    os.chmod(path, 0o555)
    os.chmod(f"{path}/data.mdb", 0o444)
    assert read(path) == expected
    os.chmod(path, 0o755)
    assert {entry: entry.stat().st_mtime_ns for entry in (tmp_path / "db").iterdir()} == before


# Files made by hand -----------------------------------------------------------------------------


def page(number: int, kind: int, nodes: Sequence[bytes], size: int) -> bytes:
    """A branch or leaf page with these nodes."""
    pointers: list[int] = []
    body = b""
    for node in reversed(nodes):
        body = node + bytes(len(node) % 2) + body
        pointers.insert(0, size - len(body))
    lower = 16 + 2 * len(nodes)
    head = struct.pack("<QHHHH", number, 0, kind, lower, size - len(body))
    head += struct.pack(f"<{len(nodes)}H", *pointers)
    return head + bytes(size - len(head) - len(body)) + body


def leaf(number: int, records: Sequence[Record], size: int, flags: int = 0) -> bytes:
    nodes = [
        struct.pack("<HHHH", len(value), 0, flags, len(key)) + key + value for key, value in records
    ]
    return page(number, 2, nodes, size)


def branch(number: int, children: Sequence[tuple[bytes, int]], size: int) -> bytes:
    nodes = [
        struct.pack("<HHHH", child & 0xFFFF, child >> 16, 0, len(key)) + key
        for key, child in children
    ]
    return page(number, 1, nodes, size)


def metas(
    *, size: int, depth: int, entries: int, root: int, last: int, flags: int = 0, version: int = 1
) -> bytes:
    def meta(number: int) -> bytes:
        data = struct.pack("<QHHHH", number, 0, 8, 0, 0)
        data += struct.pack("<IIQQ", 0xBEEFC0DE, version, 0, 1 << 20)
        data += struct.pack("<IHHQQQQQ", size, 0, 0, 0, 0, 0, 0, 2**64 - 1)
        data += struct.pack("<IHHQQQQQ", 0, flags, depth, 0, 0, 0, entries, root)
        return (data + struct.pack("<QQ", last, 1)).ljust(size, b"\0")

    return meta(0) + meta(1)


def put(folder: Path, data: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "data.mdb").write_bytes(data)
    return str(folder)


@pytest.mark.parametrize("size", [512, 4096, 16384, 65536 // 2])
def test_reads_pages_of_any_size(tmp_path: Path, size: int) -> None:
    """As machines with larger pages than 4096 bytes write them."""
    records = [(b"a", b"1" * 20), (b"b", b"2" * 33)]
    data = metas(size=size, depth=1, entries=2, root=2, last=2) + leaf(2, records, size)
    assert read(put(tmp_path / "db", data)) == records


KEYS = [(b"a", b"1"), (b"b", b"2")]
ONE_LEAF = {"size": 4096, "depth": 1, "entries": 2, "root": 2, "last": 2}


def hostile() -> dict[str, tuple[bytes, str]]:
    """Files that would harm whoever believes them, and what is said of each."""
    one = metas(**ONE_LEAF)
    good = leaf(2, KEYS, 4096)
    big = struct.pack("<Q", 3)
    deep = {"size": 4096, "depth": 2, "entries": 500, "root": 2, "last": 3}
    small = (3).to_bytes(2, "little") + (2).to_bytes(2, "little")
    bits32 = (bytes(8) + small + struct.pack("<II", 0xBEEFC0DE, 1)).ljust(8192, b"\0")
    return {
        "empty": (b"", "ends within its first pages"),
        "32 bits": (bits32, "32-bit machine"),
        "big-endian": (one[:16] + one[16:20][::-1] + one[20:], "other byte order"),
        "version": (metas(**ONE_LEAF, version=999) + good, "version 999"),
        "flags": (metas(**ONE_LEAF, flags=4) + good, "Caffe's databases do not have"),
        "page size 0": (metas(**{**ONE_LEAF, "size": 0}).ljust(9000, b"\0"), "pages of 0 bytes"),
        "root beyond": (metas(**{**ONE_LEAF, "root": 9}) + good, "page 9"),
        "root is a meta page": (metas(**{**ONE_LEAF, "root": 1}) + good, "page 1"),
        "depth": (metas(**{**ONE_LEAF, "depth": 60000}) + good, "60000 levels"),
        "more records": (metas(**{**ONE_LEAF, "entries": 3}) + good, "claims 3 records"),
        "absurdly many": (metas(**{**ONE_LEAF, "entries": 2**63}) + good, "records in 3 pages"),
        "fewer records": (metas(**{**ONE_LEAF, "entries": 1}) + good, "claims 1 records"),
        "huge last page": (metas(**{**ONE_LEAF, "last": 2**60}) + good, "is cut short"),
        "order": (one + leaf(2, KEYS[::-1], 4096), "not in order"),
        "same keys": (one + leaf(2, [KEYS[0]] * 2, 4096), "not in order"),
        "no leaf": (one + branch(2, [(b"", 2)], 4096), "not a leaf"),
        "wrong number": (one + leaf(7, KEYS, 4096), "page 2"),
        "no entries": (one + leaf(2, [], 4096), "claims 0 entries"),
        "sub-database": (one + leaf(2, KEYS, 4096, flags=2), "database of its own"),
        "big page beyond": (one + leaf(2, [(b"a", big * 2)] * 2, 4096, flags=1), "page"),
        "value beyond the page": (
            one + good.replace(struct.pack("<HHHH", 1, 0, 0, 1), struct.pack("<HHHH", 1, 9, 0, 1)),
            "beyond the page",
        ),
        "circle": (
            metas(**deep) + branch(2, [(b"", 3), (b"a", 3)] * 90, 4096) + leaf(3, KEYS, 4096),
            "not in order",
        ),
        "its own child": (metas(**deep) + branch(2, [(b"", 2)], 4096) + good, "not a leaf"),
    }


@pytest.mark.parametrize("kind", hostile())
def test_believes_nothing(tmp_path: Path, kind: str) -> None:
    data, said = hostile()[kind]
    path = put(tmp_path / "db", data)
    with pytest.raises(CaffeError) as caught:
        read(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


def test_a_value_must_lie_in_overflow_pages(tmp_path: Path) -> None:
    path = write(tmp_path / "db", values_of([10_000, 10_000]))
    file = tmp_path / "db" / "data.mdb"
    data = file.read_bytes()
    overflow = [n for n in range(2, len(data) // 4096) if data[4096 * n + 10] == 4]
    assert overflow
    for at, to in ((0, b"\x07"), (10, b"\x02"), (12, b"\x01")):
        spoiled = bytearray(data)
        spoiled[4096 * overflow[0] + at : 4096 * overflow[0] + at + 1] = to
        file.write_bytes(spoiled)
        with pytest.raises(CaffeError, match=r"data\.mdb: is damaged at page"):
            read(path)


def test_a_disk_that_cannot_be_read_makes_no_shorter_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "db", values_of([10] * 500 + [10_000]))
    reads = 0
    failing = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            nonlocal reads
            reads += 1
            if reads == failing:
                raise OSError(errno.EIO, "Input/output error")
            return function(*given)

        return call

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    assert len(read(path)) == 501
    assert reads > 4
    for failing in range(1, reads + 1):  # noqa: B007
        reads = 0
        with pytest.raises(CaffeError, match="Input/output error"):
            read(path)


def test_only_the_values_that_are_taken_are_looked_at(tmp_path: Path) -> None:
    """Pages hold 40,000 large records at once, for which a net would wait."""
    records = values_of([10_000] * 3)
    path = write(tmp_path / "db", records)
    file = tmp_path / "db" / "data.mdb"
    data = file.read_bytes()
    # The page of the last value, behind its key.
    at = data.index(records[2][0]) + len(records[2][0])
    file.write_bytes(data[:at] + b"\xff" * 8 + data[at + 8 :])
    with open_database(path, announce=False) as database:
        cursor = database.cursor()
        assert cursor.first()
        assert [in_memory(value) for value in cursor.take(2)] == [value for _, value in records[:2]]
        assert cursor.next()
        with pytest.raises(CaffeError, match=r"data\.mdb: is damaged: pages 18446744073709551615"):
            cursor.take(1)


def test_a_named_pipe_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "db").mkdir()
    os.mkfifo(tmp_path / "db" / "data.mdb")
    with pytest.raises(CaffeError, match="not a file"):
        read(str(tmp_path / "db"))


def mutants(data: bytes, count: int, seed: int) -> list[bytes]:
    draw = random.Random(seed)
    some = []
    for _ in range(count):
        spoiled = bytearray(data)
        for _ in range(draw.choice([1, 1, 2, 8])):
            # Most of it where the structure is, not in pixels.
            start = 4096 * draw.randrange(len(data) // 4096)
            at = start + draw.randrange(draw.choice([48, 200, 4096]))
            width = draw.choice([1, 1, 2, 4, 8])
            value = draw.choice(
                [0, 1, 255, 2**16 - 1, 2**31, 2**63, 2**64 - 1, draw.getrandbits(64)]
            )
            spoiled[at : at + width] = value.to_bytes(8, "little")[:width]
        some.append(bytes(spoiled[: draw.randrange(len(data))] if draw.random() < 0.1 else spoiled))
    return some


@pytest.mark.parametrize("name", ["resized_lmdb", "encoded_lmdb"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    """Whatever is changed: records no larger than the file and no more than it has, or one line."""
    data = (GOLDEN / "tools" / name / "data.mdb").read_bytes()
    refused = 0
    for mutant in mutants(data, 200, seed=3):
        path = put(tmp_path / "db", mutant)
        try:
            records = read(path)
        except CaffeError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert len(records) < 100
    assert 50 < refused < 200


def reads_on(database: Database) -> None:
    source = DatabaseSource(database)
    for first in range(0, 4000, 50):
        for value in source.load(source.fetch_all(range(first, first + 50))):
            assert len(value)


@pytest.mark.parametrize("size", [500, 3000, 100_000])
@pytest.mark.parametrize("left", [0, 8192, 40_000])
def test_a_file_that_becomes_shorter_ends_with_a_line(tmp_path: Path, size: int, left: int) -> None:
    """Reading goes on for a while, but never beyond the end: the process lives."""
    path = write(tmp_path / "db", values_of([size] * 300))
    with open_database(path, announce=False) as database:
        reads_on(database)
        os.truncate(f"{path}/data.mdb", left)
        with pytest.raises(CaffeError, match=r"data\.mdb: has become shorter while it was read"):
            reads_on(database)


def test_two_may_read_the_same_and_close_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "db", values_of([5000] * 3))
    one = open_database(path, announce=False)
    other = open_database(path, announce=False)
    cursor = other.cursor()
    assert cursor.first()
    one.close()
    one.close()
    shutil.rmtree(path)
    assert len(cursor.value()) == 5000
    other.close()
    with pytest.raises(ValueError, match="is closed"):
        cursor.value()


def test_large_values_are_taken_together_and_left_out(tmp_path: Path) -> None:
    """Of several leaves, from the middle on, in steps and back to the first."""
    records = values_of([3000 + n for n in range(400)])
    values = [value for _, value in records]
    with open_database(write(tmp_path / "db", records), announce=False) as database:
        cursor = database.cursor()
        assert cursor.first() and cursor.skip(30) == 30
        taken = cursor.take(1000)
        assert len(taken) == 370
        assert not cursor.next()
        for some in (slice(0, None, 7), slice(369, None, -100), slice(5, 5)):
            assert [bytes(value) for value in taken[some]] == values[30:][some]
        assert bytes(taken[-1]) == values[-1]
