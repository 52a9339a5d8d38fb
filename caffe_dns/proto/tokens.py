"""Cutting protobuf's text format into tokens.

The rules are those of C++ protobuf's tokenizer in shell-comment style, which Caffe uses: strings
may span lines, numbers may be octal or hexadecimal and may end in `f`. What the tokens mean is the
parser's business.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

_TOKEN = re.compile(
    r"""[ \t\r\n\v\f]+ | \#[^\n]*
    | (?P<name>[A-Za-z_][A-Za-z0-9_]*)
    | (?P<number>0[xX][0-9A-Fa-f]+ | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)
    | (?P<string>"(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*')
    | (?P<symbol>[{}<>\[\]:,;-])
    | (?P<unclosed>["'])
    | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """`kind` is a group of `_TOKEN` or `end`; `offset` counts characters from the start."""

    kind: str
    text: str
    offset: int


class Lines:
    """Turns offsets in a text into lines and columns, both counted from 1."""

    def __init__(self, text: str) -> None:
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def line(self, offset: int) -> int:
        return bisect_right(self._starts, offset)

    def column(self, offset: int) -> int:
        return offset - self._starts[self.line(offset) - 1] + 1


def tokenize(text: str) -> list[Token]:
    """All tokens of `text`, and a last one of kind `end`.

    A quote without its partner is of kind `unclosed`, what belongs nowhere of kind `other`.
    """
    tokens = [
        Token(match.lastgroup, match.group(), match.start())
        for match in _TOKEN.finditer(text)
        if match.lastgroup is not None
    ]
    tokens.append(Token("end", "the end of the file", len(text)))
    return tokens
