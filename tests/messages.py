"""The messages of a log, and comparing them with what a real Caffe logs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

import pytest

PREFIX = re.compile(r"[IWEF]\d{4} [\d:.]+ +\d+ \w+\.\w+:\d+\] ")
NUMBER = re.compile(r"-?\d+\.?\d*(?:e[+-]?\d+)?")
SPEED = re.compile(r" \(\S+ iter/s, \S+s/(\d+) iters\)")
#: Reading threads log these when they come to it.
AT_ANY_TIME = ("Restarting data prefetching", "Waiting for data")
#: What dns tells of a run before Caffe's lines, and of its seed.
OURS = ("Versions: ", "Host: ", "Command line: ", "Folder: ", "Random seed: ")


def messages(text: str) -> list[str]:
    """The messages of a log; lines without a prefix belong to the one before."""
    found: list[str] = []
    for line in text.splitlines():
        match = PREFIX.match(line)
        if match:
            found.append(line[match.end() :])
        else:
            found[-1] += "\n" + line
    return [SPEED.sub(r" (\1 iters)", message.rstrip()) for message in found]


def in_order(found: Iterable[str]) -> list[str]:
    return [message for message in found if not message.startswith((*AT_ANY_TIME, *OURS))]


def assert_same_messages(ours: Iterable[str], theirs: Iterable[str]) -> None:
    """Equal but for the last printed digits of numbers."""
    actual, expected = in_order(ours), in_order(theirs)
    wanted, found = ([NUMBER.sub("#", m) for m in side] for side in (expected, actual))
    difference = list(difflib.unified_diff(wanted, found, "Caffe", "dns", lineterm="", n=1))
    assert not difference, "\n".join(difference[:40])
    for mine, theirs in zip(actual, expected, strict=True):
        numbers = [[float(n) for n in NUMBER.findall(side)] for side in (mine, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-5, abs=1e-9), f"{mine} | {theirs}"
