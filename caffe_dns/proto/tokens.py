"""Cutting protobuf's text format into tokens.

The rules are those of C++ protobuf's tokenizer in shell-comment style, which Caffe uses: strings
may span lines, numbers may be octal or hexadecimal and may end in `f`. What the tokens mean is the
parser's business.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_TOKEN = re.compile(
    r"""[ \t\r\n\v\f]* (?: \#[^\n]*
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>0[xX][0-9A-Fa-f]+ | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)
    | (?P<symbol>[{}<>\[\]:,;-])
    | (?P<string>["'])
    | (?P<other>[^ \t\r\n\v\f]))""",
    re.VERBOSE | re.DOTALL,
)


OPENING, CLOSING = ("{", "<", "["), ("}", ">", "]")


class Token(NamedTuple):
    """`kind` is a group of `_TOKEN`, or `end`; `offset` counts characters from the start.

    A quote without its partner is of kind `unclosed`, what belongs nowhere of kind `other`.
    """

    kind: str
    text: str
    offset: int


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

    After the last comes one of kind `end`, again and again.
    """

    def __init__(self, text: str, start: int = 0) -> None:
        self._text = text
        self._end = start
        #: Where the first string of several lines begins among the tokens so far.
        self.long_string: int | None = None
        self.next = self._find()

    def take(self) -> Token:
        """The next token; the one after it is the next then."""
        token = self.next
        self.next = self._find()
        return token

    def skip(self, text: str) -> bool:
        """Step over the next token if it reads `text`."""
        found = self.next.text == text
        if found:
            self.take()
        return found

    def skip_value(self) -> Token | None:
        """Step over a value, with all that is inside; the token that is wrong if it is none."""
        depth = 0
        while True:
            token = self.take()
            depth += (token.text in OPENING) - (token.text in CLOSING)
            if token.kind in ("end", "unclosed") or depth < 0:
                return token
            if depth == 0 and token.text != "-":
                break
        while token.kind == "string" and self.next.kind == "string":
            self.take()
        return None

    def _find(self) -> Token:
        while match := _TOKEN.match(self._text, self._end):
            kind = match.lastgroup
            self._end = match.end()
            if kind is None:
                continue
            text, start = match[kind], match.start(kind)
            return self._find_string(text, start) if kind == "string" else Token(kind, text, start)
        return Token("end", "the end of the file", len(self._text))

    def _find_string(self, quote: str, start: int) -> Token:
        """The string that begins with this quote, up to its partner."""
        # Not by a regular expression, which would take 100 times the string's size in memory.
        text, at = self._text, start + 1
        while (end := text.find(quote, at)) >= 0:
            before = end
            while text[before - 1] == "\\" and before > at:
                before -= 1
            at = end + 1
            if (end - before) % 2 == 0:
                self._end = at
                if self.long_string is None and text.find("\n", start, end) >= 0:
                    self.long_string = start
                return Token("string", text[start:at], start)
        return Token("unclosed", quote, start)
