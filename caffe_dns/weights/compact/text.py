"""A text as it is coded, byte by byte, and what is known about it at each point."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable

_ORDERS = (1, 2, 3, 4, 6, 8)
_LONGEST_ORDER = max(_ORDERS)
#: Bytes below this end a line.
_BLANK = 32
_NEWLINE, _BLANKS = ord("\n"), b" \t\r\n\v\f"
#: Longer lines are told apart by the 64 bytes of a digest: all their beginnings fill gigabytes.
_LONGEST_LINE = 63
#: How a definition begins that the primer holds last.
_FIRST_LINE = b'name: "LeNet"\n'


class Text:
    """A text as far as it is known, and the line that probably comes next."""

    def __init__(self) -> None:
        self.known = bytearray(_LONGEST_ORDER)
        self._stripped = _Stripped(self.known)
        self._line = bytearray()
        self._lines: list[bytes] = []
        #: Where each line came last.
        self._last: dict[bytes, int] = {}
        #: Which of the lines is expected again, and whether this one is like it so far.
        self._at = 0
        self._agrees = True

    def begin(self) -> Text:
        """A copy for a text that begins like the last definition in this one."""
        result = Text()
        result.known, result._lines = self.known.copy(), self._lines.copy()
        result._last = self._last.copy()
        result._stripped = _Stripped(self.known[self.known.rfind(b"\n") + 1 :])
        result._at = self._lines.index(_FIRST_LINE)
        return result

    def add(self, byte: int) -> None:
        """One more byte."""
        self.known.append(byte)
        if byte == _NEWLINE:
            self._stripped = _Stripped(b"")
        else:
            self._stripped.add(byte)
        expected, done = self._expected_line(), len(self._line)
        self._agrees = self._agrees and done < len(expected) and expected[done] == byte
        self._line.append(byte)
        if byte >= _BLANK:
            return
        line = bytes(self._line)
        if line in self._last and expected != line:
            self._at = self._last[line]
        self._last[line] = len(self._lines)
        self._lines.append(line)
        self._line, self._agrees = bytearray(), True
        self._at += 1

    def past(self) -> list[Hashable]:
        """What a byte depends on: nothing, the last bytes, and the line so far."""
        orders = (bytes(self.known[-length:]) for length in _ORDERS)
        return [0, *orders, self._stripped.name()]

    def expected(self, partial: int, shift: int) -> int:
        """The next bit of the line that is expected; -1 where another one has begun."""
        line, done = self._expected_line(), len(self._line)
        byte = line[done] + 256 if self._agrees and done < len(line) else 0
        return byte >> shift & 1 if byte >> shift + 1 == partial else -1

    def _expected_line(self) -> bytes:
        return self._lines[self._at] if self._at < len(self._lines) else b""


class _Stripped:
    """A line so far without the blanks around it, of which no byte is looked at twice."""

    def __init__(self, line: Iterable[int]) -> None:
        self._known, self._blanks = bytearray(), bytearray()
        self._digest = hashlib.blake2b()
        for byte in line:
            self.add(byte)

    def add(self, byte: int) -> None:
        """One more byte, which is no newline."""
        if byte not in _BLANKS or self._known:
            self._blanks.append(byte)
        if byte not in _BLANKS:
            self._known += self._blanks
            self._digest.update(self._blanks)
            self._blanks.clear()

    def name(self) -> bytes:
        """What tells it from others."""
        if len(self._known) > _LONGEST_LINE:
            return self._digest.copy().digest()
        return bytes(self._known)
