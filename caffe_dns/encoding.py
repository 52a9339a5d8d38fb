"""Text that is not UTF-8, kept byte for byte.

Definitions contain comments, names and paths in GBK, Latin-1 or whatever their authors typed; to
Caffe they are bytes. Strings in messages must be Unicode, so each byte that is not UTF-8 becomes a
character that no text contains, from the last plane for private use. For the file system and the
log, it becomes what Python makes of such bytes everywhere (`surrogateescape`).
"""

from __future__ import annotations

import re

#: In messages, byte 0x80 is the character _BASE + 0x80, and so on.
_BASE = 0x10F700
_TO_SURROGATES = {_BASE + byte: chr(0xDC00 + byte) for byte in range(0x80, 0x100)}
_TO_STAND_INS = {0xDC00 + byte: chr(_BASE + byte) for byte in range(0x80, 0x100)}
#: A stand-in that somebody has typed would be taken for a byte, so its own bytes stand in for it.
_TO_STAND_INS |= {
    typed: "".join(chr(_BASE + byte) for byte in chr(typed).encode()) for typed in _TO_SURROGATES
}
#: The first bytes of all such characters in UTF-8.
MARK = re.compile(rb"\xf4\x8f[\x9e\x9f]")


def decode(raw: bytes) -> str:
    """Bytes as text for a message; `encode` gives the same bytes again."""
    return in_message(raw.decode("utf-8", "surrogateescape"))


def encode(text: str) -> bytes:
    """The bytes of text from a message, or from the system."""
    return on_disk(text).encode("utf-8", "surrogateescape")


def on_disk(text: str) -> str:
    """Text from a message as Python's functions for files take it, and as the log has it."""
    return text if text.isascii() else text.translate(_TO_SURROGATES)


def in_message(text: str) -> str:
    """A name from the system, or from the command line, as a message takes it."""
    return text if text.isascii() else text.translate(_TO_STAND_INS)
