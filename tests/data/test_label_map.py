"""Files of labels: what they may say, and how much of it."""

from pathlib import Path

import pytest

from caffe_dns.data.label_map import read_label_map
from caffe_dns.errors import CaffeError


def write(path: Path, *items: tuple[str, int]) -> str:
    path.write_text("".join(f'item {{ name: "{name}" label: {label} }}\n' for name, label in items))
    return str(path)


def test_a_name_or_a_label_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "labels.prototxt"
    for items, said in (
        ([("a", 1), ("b", 2), ("a", 3), ("b", 4)], "has the name 'a' twice"),
        ([("a", 1), ("b", 0), ("c", 0)], "has the label '0' twice"),
        ([("x" * 10**6, 1), ("x" * 10**6, 2)], f"has the name '{'x' * 200}...' twice"),
    ):
        with pytest.raises(CaffeError) as caught:
            read_label_map(write(path, *items))
        assert str(caught.value) == f"{path}: {said}"
        assert len(read_label_map(str(path), strict=False).item) == len(items)


def test_of_many_names_each_is_looked_at_once(tmp_path: Path) -> None:
    """Each was counted among all others: 30,000 took half a minute."""
    items = [(f"n{number}", number) for number in range(30_000)]
    assert len(read_label_map(write(tmp_path / "labels.prototxt", *items)).item) == 30_000
