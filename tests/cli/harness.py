"""Runs `dns` in this process, and tells the lines of its log from what else it says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from caffe_dns.cli.main import main

_LOG_LINE = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.py:\d+\] (.*)")


@dataclass
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """The messages of the log, without their prefixes."""
        return [match[1] for line in self.err.splitlines() if (match := _LOG_LINE.match(line))]

    @property
    def complaints(self) -> list[str]:
        """Lines on stderr that belong neither to the log nor to a definition printed there."""
        lines = []
        in_definition = False
        for line in self.err.splitlines():
            if match := _LOG_LINE.match(line):
                in_definition = match[1].endswith("from parameters: ")
            elif line.startswith("dns: ") or not in_definition:
                lines.append(line)
        return lines


def run(arguments: Sequence[str], capture: pytest.CaptureFixture[str]) -> Result:
    """Run `dns` with these arguments; what was printed before is dropped."""
    capture.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    printed = capture.readouterr()
    assert isinstance(caught.value.code, int)
    return Result(caught.value.code, printed.out, printed.err)


def run_well(arguments: Sequence[str], capture: pytest.CaptureFixture[str]) -> Result:
    """Run `dns`, which has to succeed."""
    result = run(arguments, capture)
    assert result.code == 0, result.err[-1000:]
    assert not result.complaints
    return result


def complaint(arguments: Sequence[str], capture: pytest.CaptureFixture[str]) -> str:
    """The one line that `dns` has to end with when its input is wrong."""
    result = run(arguments, capture)
    assert result.code == 1, result.err[-1000:]
    assert len(result.complaints) == 1, result.complaints
    assert result.complaints[0].startswith("dns: ")
    return result.complaints[0]
