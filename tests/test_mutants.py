"""Damaged files of every format: read, or refused in one line.

tools/reliability/mutants tries more, each in a child with limits. It also runs the nets of damaged
definitions, which are only built here.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from caffe_dns import log
from caffe_dns.errors import CaffeError
from tools.reliability.formats import Format, build_formats, check_good

NAMES = ["net_train", "net_guo", "net_deploy", "net_varied", "net_layers", "solver", "caffemodel"]
NAMES += [
    "solverstate",
    "caffemodel_h5",
    "solverstate_h5",
    "dnsz",
    "lmdb_raw",
    "lmdb_encoded",
    "leveldb",
]
NAMES += ["hdf5_data", "mean", "datum", "image_datum", "image_list", "log", "annotation", "list"]
#: Bit by bit in Python.
SLOW = "dnsz_shared"
#: How many of each format.
COUNTS = [100, pytest.param(400, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Format]]:
    """All formats, in a folder that is the current one."""
    before = Path.cwd()
    was_quiet = log.set_quiet(True)
    os.chdir(tmp_path_factory.mktemp("mutants"))
    try:
        with pytest.MonkeyPatch.context() as monkeypatch:
            # Some damage makes of a compact file one that is read for seconds.
            monkeypatch.setattr("caffe_dns.weights.compact.elements.MOST_BITS", 2**14)
            yield build_formats(run_nets=False)
    finally:
        os.chdir(before)
        log.set_quiet(was_quiet)


def test_what_is_whole_is_read(formats: dict[str, Format]) -> None:
    assert set(formats) == {*NAMES, SLOW}
    check_good(formats)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", [*NAMES, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_what_is_damaged_is_read_or_refused(
    name: str, count: int, formats: dict[str, Format]
) -> None:
    each = formats[name]
    draw = random.Random(f"tests {name}")
    refused = 0
    for number in range(count):
        Path(each.file).write_bytes(each.damage(each.good, draw))
        try:
            assert each.read(each.file) is None, f"mutant {number}"
        except CaffeError as error:
            refused += 1
            assert str(error)
        except MemoryError:
            assert each.asks
    Path(each.file).write_bytes(each.good)
    assert 0 < refused < count
