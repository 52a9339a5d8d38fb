"""Records by number: seeking, going round, leaving out, and orders."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.data.db import create_database, open_database
from caffe_dns.data.sources import DatabaseSource, Order
from caffe_dns.errors import CaffeError
from tests.data.test_db import contents
from tests.oracle import GOLDEN

DATABASES = [("resized_lmdb", "lmdb"), ("resized_leveldb", "leveldb")]
RESTART = "Restarting data prefetching from start."


def source(name: str, backend: str, skip: int = 0) -> DatabaseSource:
    path = str(GOLDEN / "tools" / name)
    return DatabaseSource(open_database(path, backend, announce=False), skip=skip)


@pytest.mark.parametrize(("name", "backend"), DATABASES)
@pytest.mark.parametrize("start", [0, 5, 11, 12, 13, 36, 1001])
@pytest.mark.parametrize("skip", [0, 3])
def test_finds_records_by_number(name: str, backend: str, start: int, skip: int) -> None:
    values = [value for _, value in contents(GOLDEN / "tools" / name, backend)]
    records = source(name, backend, skip)
    for number in (start, start + 1, start + 4, start + 30, 1, 2):
        assert bytes(records.fetch(number)) == values[(number + skip) % len(values)]
    records.close()


@pytest.mark.parametrize(("name", "backend"), DATABASES)
def test_logs_each_new_round_but_none_while_seeking(
    name: str, backend: str, capfd: pytest.CaptureFixture[str]
) -> None:
    records = source(name, backend)
    records.fetch(30)
    assert RESTART not in capfd.readouterr().err
    for number in range(31, 36):
        records.fetch(number)
    # As in Caffe the cursor steps on after each record, so the line comes after the last one.
    assert capfd.readouterr().err.count(RESTART) == 1
    records.fetch(48)
    assert capfd.readouterr().err.count(RESTART) == 1
    records.close()


@pytest.mark.parametrize(("name", "backend"), DATABASES)
@pytest.mark.parametrize("numbers", [[7], [7, 8, 9], [5, 8, 11, 14], [2, 7, 9], [0, 13, 26, 39]])
@pytest.mark.parametrize("skip", [0, 3])
def test_finds_several_records_at_once(
    name: str, backend: str, numbers: list[int], skip: int
) -> None:
    """One after the other, or with the same distance between them, as a rank reads."""
    values = [value for _, value in contents(GOLDEN / "tools" / name, backend)]
    records = source(name, backend, skip)
    later = [number + 2 * numbers[-1] + 1 for number in numbers]
    for some in (numbers, later, numbers):
        expected = [values[(number + skip) % len(values)] for number in some]
        assert [bytes(value) for value in records.fetch_all(some)] == expected
    records.close()


def test_an_empty_database_is_an_error(tmp_path: Path) -> None:
    path = str(tmp_path / "empty")
    create_database(path).close()
    records = DatabaseSource(open_database(path))
    with pytest.raises(CaffeError, match="empty: the database has no records"):
        records.fetch(0)
    records.close()


def test_an_order_without_a_seed_is_the_list_s() -> None:
    order = Order(5)
    assert [order.index(number) for number in range(12)] == [*range(5), *range(5), 0, 1]


def test_a_shuffled_order_goes_through_the_list_once_a_round() -> None:
    order = Order(20, seed=1, stream="a")
    rounds = [[order.index(20 * turn + index) for index in range(20)] for turn in range(3)]
    for entries in rounds:
        assert sorted(entries) == list(range(20))
    assert rounds[0] != rounds[1] != rounds[2]
    again = Order(20, seed=1, stream="a")
    assert [again.index(index) for index in range(20, 40)] == rounds[1]
    other = Order(20, seed=2, stream="a")
    assert [other.index(index) for index in range(20)] != rounds[0]
