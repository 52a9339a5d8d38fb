"""A text as it is coded, byte by byte, and what is known of it by then."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable

_ORDERS = (1, 2, 3, 4, 6, 8)
_LONGEST_ORDER = max(_ORDERS)
#: Bytes below this end a line.
_BLANK = 32
#: Longer lines are told apart by the 64 bytes of a digest: all their beginnings fill gigabytes.
_LONGEST_LINE = 63
#: How a definition begins that the primer holds last.
_FIRST_LINE = b'name: "LeNet"\n'


class Text:
    """A text as far as it is known, and the line that probably comes next."""

    def __init__(self) -> None:
        self.known = bytearray(_LONGEST_ORDER)
        self._line = b""
        self._lines: list[bytes] = []
        #: Which of the lines is expected again.
        self._at = 0

    def begin(self) -> Text:
        """A copy for a text that begins like the last definition in this one."""
        result = Text()
        result.known, result._lines = self.known.copy(), self._lines.copy()
        result._at = self._lines.index(_FIRST_LINE)
        return result

    def add(self, byte: int) -> None:
        """One more byte."""
        self.known.append(byte)
        self._line += bytes([byte])
        if byte >= _BLANK:
            return
        lines, line = self._lines, self._line
        if line in lines and self._expected_line() != line:
            self._at = len(lines) - 1 - lines[::-1].index(line)
        lines.append(line)
        self._line = b""
        self._at += 1

    def past(self) -> list[Hashable]:
        """What a byte depends on: nothing, the last bytes, and the line so far."""
        line = bytes(self.known[self.known.rfind(b"\n") + 1 :]).strip()
        if len(line) > _LONGEST_LINE:
            line = hashlib.blake2b(line).digest()
        return [0, *(bytes(self.known[-length:]) for length in _ORDERS), line]

    def expected(self, partial: int, shift: int) -> int:
        """The next bit of the line that is expected; -1 where another one has begun."""
        line, done = self._expected_line(), self._line
        rest = line[len(done) :] if line.startswith(done) else b""
        byte = rest[0] + 256 if rest else 0
        return byte >> shift & 1 if byte >> shift + 1 == partial else -1

    def _expected_line(self) -> bytes:
        return self._lines[self._at] if self._at < len(self._lines) else b""
