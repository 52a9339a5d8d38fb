"""Cuts protobuf's text format into tokens.

The rules are those of C++ protobuf's tokenizer in shell-comment style, which Caffe uses: strings
may span lines, numbers may be octal or hexadecimal and may end in `f`. What the tokens mean is the
parser's business.
"""

from __future__ import annotations

import re
import string
from bisect import bisect
from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

from caffe_dns.encoding import on_disk
from caffe_dns.errors import shortened

_NAME = r"[A-Za-z_][A-Za-z0-9_]*"
_NUMBER = r"0[xX][0-9A-Fa-f]+ | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?"
#: Strings, which may go on behind the piece, and comments.
_LONG = r"""  "[^"\\]*(?:\\[\s\S][^"\\]*)*(?:"|\\?\Z)
            | '[^'\\]*(?:\\[\s\S][^'\\]*)*(?:'|\\?\Z) | \#[^\n]*"""


def _pattern(between: str, *kinds: str) -> re.Pattern[str]:
    """What finds tokens of some kinds with what may stand before each, or the end of a piece."""
    choices = " | ".join((*kinds, _LONG, r"\Z"))
    return re.compile(f"{between} ( {choices} )", re.VERBOSE)


#: All tokens; those by which fields are found, of a text that has been read; strings alone.
_ALL = _pattern(r"[ \t\r\n\v\f]*", _NAME, _NUMBER, r"[^ \t\r\n\v\f\#\"']")
FIELDS = _pattern(r"[^A-Za-z_{}<>\[\]:\#\"']*", _NAME, r"[{}<>\[\]:]")
_STRINGS = _pattern(r"[^\#\"']*")
#: Where no name or number goes on: what stands in none, or a sign that belongs to no exponent.
_BREAK = re.compile(r"[^A-Za-z0-9_.+-]|(?<![eE])[+-]")
#: How many characters are cut at a time, or as many more as a word or a string goes on.
_PIECE = 1 << 12
#: Characters behind a number that may belong to it: e+5.
_AHEAD = 3
_QUOTES = ('"', "'")
_DIGITS = frozenset(string.digits)
_LETTERS = frozenset(string.ascii_letters + "_")

OPENING, CLOSING = ("{", "<", "["), ("}", ">", "]")
_NESTING = {**dict.fromkeys(OPENING, 1), **dict.fromkeys(CLOSING, -1)}
#: As deep as protobuf reads binary messages.
DEEPEST = 100


class Token(NamedTuple):
    """A token, and how many tokens stand before it."""

    text: str
    number: int


def is_name(text: str) -> bool:
    """Whether a token is a name."""
    return text[:1] in _LETTERS


def is_number(text: str) -> bool:
    """Whether a token is a number without its sign."""
    return text[:1] in _DIGITS or (text[:1] == "." and len(text) > 1)


def is_string(text: str) -> bool:
    """Whether a token is a string, in its quotes. A quote without its partner is none."""
    return text[:1] in _QUOTES and len(text) > 1


def quoted(text: str) -> str:
    """A token for messages; of what is no ASCII, the bytes or the number of the character."""
    return ascii(on_disk(shortened(text))).replace("\\udc", "\\x")


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
    """The tokens of some kinds from `start` on, of which some thousands are kept in memory.

    After the last come empty ones, again and again. A quote without its partner is the last one.
    """

    #: What comes next.
    next: str

    def __init__(self, text: str, start: int = 0, kinds: re.Pattern[str] = _ALL) -> None:
        self._text = text
        self._kinds = kinds
        #: Of each piece so far how many tokens stand before it, and where it begins and ends.
        self._bounds: list[tuple[int, int, int]] = []
        self._pieces = self._cut(start)
        #: The piece that the next token is in, and its place there.
        self._piece: list[str] = []
        self._at = 0
        self._before = 0
        #: Where the tokens begin of the piece that was asked for last.
        self._offsets: tuple[int, list[int]] = (-1, [])
        self._go_on()

    @property
    def number(self) -> int:
        """How many tokens stand before the next one."""
        return self._before + self._at

    def offset(self, number: int) -> int:
        """How many characters of the text stand before a token that has been the next one."""
        at = bisect(self._bounds, number, key=itemgetter(0)) - 1
        if at < 0:
            return len(self._text)
        before, start, end = self._bounds[at]
        if self._offsets[0] != at:
            matches = self._kinds.finditer(self._text, start, end)
            self._offsets = at, [match.start(1) for match in matches if _is_token(match[1])]
        _, offsets = self._offsets
        return offsets[number - before] if number - before < len(offsets) else len(self._text)

    def take(self) -> str:
        """The next token; the one after it is the next then."""
        text = self.next
        self._at += 1
        try:
            self.next = self._piece[self._at]
        except IndexError:
            self._go_on()
        return text

    def skip(self, text: str) -> bool:
        """Step over the next token if it reads `text`."""
        if self.next != text:
            return False
        self.take()
        return True

    def alike(self, *before: str) -> list[str]:
        """Tokens to come, each with these before it, and the first of these after it.

        Not more than are at hand. `skip_alike` steps over them.
        """
        piece, at, step = self._piece, self._at, len(before) + 1
        if piece[at : at + step - 1] != [*before]:
            return []
        end, last, first, nearest = at, len(piece) - step, before[0], before[-1]
        while end < last and piece[end + step] == first and piece[end + step - 2] == nearest:
            end += step
        for shift, text in enumerate(before):
            if piece[at + shift : end : step].count(text) * step != end - at:
                return []
        return piece[at + step - 1 : end : step]

    def skip_alike(self, count: int, *before: str) -> None:
        """Step over so many tokens, each with these before it, all of which `alike` has found."""
        self._at += count * (len(before) + 1)
        self.next = self._piece[self._at]

    def skip_value(self) -> Token | None:
        """Step over a value, with all that is inside; the token that is wrong if it is none.

        What opens a message too deep inside others is wrong, too.
        """
        depth = 0
        while True:
            number = self.number
            text = self.take()
            depth += _NESTING.get(text, 0)
            if not text or text in _QUOTES or not 0 <= depth <= DEEPEST:
                return Token(text, number)
            if depth == 0 and text != "-":
                break
        while is_string(text) and is_string(self.next):
            self.take()
        return None

    def _go_on(self) -> None:
        """Begin the next piece."""
        self._before += len(self._piece)
        self._piece, self._at = next(self._pieces, [""]), 0
        self.next = self._piece[0]

    def _cut(self, start: int) -> Iterator[list[str]]:
        """The tokens from an offset on, in pieces that are not empty."""
        text, number = self._text, 0
        while start < len(text):
            end = self._end_of_piece(start)
            tokens = self._kinds.findall(text, start, end)
            while tokens and not tokens[-1]:
                tokens.pop()
            following = end
            if tokens and text.endswith(tokens[-1], start, end):
                following = self._end_of(tokens, end)
            tokens = list(filter(_is_token, tokens)) if "#" in text[start:end] else tokens
            if tokens:
                self._bounds.append((number, start, end))
                number += len(tokens)
                yield tokens
            start = following

    def _end_of_piece(self, start: int) -> int:
        """Where a piece may end that begins at `start`: only a string or a comment goes on there.

        Mostly at a break, or behind a token where there is none for as long again: `ab.cd.ef.`
        """
        text, size = self._text, _PIECE
        while True:
            reach = min(start + 2 * size, len(text))
            if pause := _BREAK.search(text, start + size, reach):
                return pause.start()
            last, end = reach - (_AHEAD if reach < len(text) else 0), start
            for match in self._kinds.finditer(text, start, reach):
                if match.end() == reach and match[1][:1] in ("#", *_QUOTES):
                    return reach
                if match.end() > last:
                    break
                end = match.end()
                if end >= start + size:
                    return end
            if end > start:
                return end
            size *= 2

    def _end_of(self, tokens: list[str], end: int) -> int:
        """Where the last token ends that may go on at `end`; makes it whole."""
        text, last = self._text, tokens[-1]
        start = end - len(last)
        if last[0] == "#":
            newline = text.find("\n", end)
            return newline if newline >= 0 else len(text)
        if last[0] not in _QUOTES:
            return end
        closed = self._end_of_string(last[0], start + 1)
        tokens[-1] = text[start:closed]
        return closed if closed > start + 1 else len(text)

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


def _is_token(text: str) -> bool:
    """Whether that is a token: comments and the end of a piece are none."""
    return text[:1] not in ("", "#")


def line_of_long_string(text: str, end: int) -> int | None:
    """The line of the first string of several lines that begins before the offset `end`."""
    tokens = Tokens(text[:end], kinds=_STRINGS)
    while tokens.next:
        if "\n" in tokens.next:
            return Lines(text).line(tokens.offset(tokens.number))
        tokens.take()
    return None
