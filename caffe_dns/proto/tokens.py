"""Cutting protobuf's text format into tokens.

The rules are those of C++ protobuf's tokenizer in shell-comment style, which Caffe uses: strings
may span lines, numbers may be octal or hexadecimal and may end in `f`. What the tokens mean is the
parser's business.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    r"""[ \t\r\n\v\f]* (?: \#[^\n]* | (
      [A-Za-z_][A-Za-z0-9_]*
    | 0[xX][0-9A-Fa-f]+ | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?
    | "[^"\\]*" | '[^'\\]*'
    | [^ \t\r\n\v\f] ) | \Z )""",
    re.VERBOSE,
)
_QUOTES = ('"', "'")
_DIGITS = frozenset(string.digits)
_LETTERS = frozenset(string.ascii_letters + "_")

OPENING, CLOSING = ("{", "<", "["), ("}", ">", "]")
_NESTING = {**dict.fromkeys(OPENING, 1), **dict.fromkeys(CLOSING, -1)}
#: As deep as protobuf reads binary messages.
DEEPEST = 100


class Token(NamedTuple):
    """A token, and how many characters stand before it."""

    text: str
    offset: int


def is_name(text: str) -> bool:
    """Whether a token is a name."""
    return text[:1] in _LETTERS


def is_number(text: str) -> bool:
    """Whether a token is a number without its sign."""
    return text[:1] in _DIGITS or (text[:1] == "." and len(text) > 1)


def is_string(text: str) -> bool:
    """Whether a token is a string, in its quotes. A quote without its partner is none."""
    return text[:1] in _QUOTES and len(text) > 1


class Lines:
    """Turns offsets in a text into lines and columns, both counted from 1.

    Quick where the offsets increase from one question to the next.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        #: The last answer: so many lines begin before this offset.
        self._offset, self._line = 0, 1

    def line(self, offset: int) -> int:
        if offset < self._offset:
            self._offset, self._line = 0, 1
        self._line += self._text.count("\n", self._offset, offset)
        self._offset = offset
        return self._line

    def column(self, offset: int) -> int:
        return offset - self._text.rfind("\n", 0, offset)


class Tokens:
    """The tokens of a text from `start` on, of which only the next one is kept in memory.

    After the last come empty ones, again and again. A quote without its partner is a token.
    """

    #: What comes next.
    next: str
    #: How many characters of the text stand before its end.
    end: int

    def __init__(self, text: str, start: int = 0) -> None:
        self._text = text
        self._rest = self._read(start)
        self.next, self.end = next(self._rest)

    @property
    def offset(self) -> int:
        """How many characters of the text stand before the next token."""
        return self.end - len(self.next)

    def take(self) -> str:
        """The next token; the one after it is the next then."""
        text = self.next
        self.next, self.end = next(self._rest)
        return text

    def skip(self, text: str) -> bool:
        """Step over the next token if it reads `text`."""
        if self.next != text:
            return False
        self.next, self.end = next(self._rest)
        return True

    def skip_value(self) -> Token | None:
        """Step over a value, with all that is inside; the token that is wrong if it is none.

        What opens a message too deep inside others is wrong, too.
        """
        depth = 0
        while True:
            text, end = self.next, self.end
            self.take()
            depth += _NESTING.get(text, 0)
            if not text or text in _QUOTES or not 0 <= depth <= DEEPEST:
                return Token(text, end - len(text))
            if depth == 0 and text != "-":
                break
        while is_string(text) and is_string(self.next):
            self.take()
        return None

    def _read(self, start: int) -> Iterator[tuple[str, int]]:
        """The tokens, each with the offset of its end."""
        at: int | None = start
        while at is not None:
            matches, at = _TOKEN.finditer(self._text, at), None
            for match in matches:
                text, end = match[1], match.end()
                if text in _QUOTES:
                    at = self._end_of_string(text, end)
                    yield self._text[match.start(1) : at], at
                    break
                if text:
                    yield text, end
        while True:
            yield "", len(self._text)

    def _end_of_string(self, quote: str, start: int) -> int:
        """Where a string with escapes ends that begins before `start`: there if it never does."""
        # Not by a regular expression, which would take 100 times the string's size in memory.
        text, at = self._text, start
        while (end := text.find(quote, at)) >= 0:
            before = end
            while text[before - 1] == "\\" and before > at:
                before -= 1
            at = end + 1
            if (end - before) % 2 == 0:
                return at
        return start


def long_string(text: str, end: int) -> int | None:
    """Where the first string of several lines begins before the offset `end`, or None."""
    tokens = Tokens(text)
    while tokens.next and tokens.offset < end:
        if is_string(tokens.next) and "\n" in tokens.next:
            return tokens.offset
        tokens.take()
    return None
