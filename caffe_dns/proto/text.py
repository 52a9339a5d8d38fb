"""Messages and files: text definitions with their positions, binary models and states.

Reads, prints and writes; old definitions are upgraded elsewhere (`upgrade`). Every file that cannot
be read ends in one CaffeError that names it.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from caffe_dns import encoding
from caffe_dns.errors import CaffeError
from caffe_dns.files import write_atomically
from caffe_dns.files.kinds import HEAD, other_kind
from caffe_dns.files.reading import read_file
from caffe_dns.proto.fields import is_repeated
from caffe_dns.proto.forks import renumber_layers
from caffe_dns.proto.parser import Parser
from caffe_dns.proto.positions import Positions
from caffe_dns.proto.values import print_value
from caffe_dns.proto.wire import Piece
from caffe_dns.proto.wire_text import parse, serialize

M = TypeVar("M", bound=Message)

#: protobuf refuses longer messages (`util/io.cpp`: kProtoReadBytesLimit).
MAX_BYTES = 2**31 - 1

#: Bytes that text files do not contain; binary models have them in their first lines.
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1f]")
_HEAD = 256
#: What old editors and broken downloads append to a text: ^Z and NULs.
_TAIL = b"\x1a\x00\r\n"
_UTF_16_AND_32 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
#: A letter in UTF-16 without a byte order mark.
_NULS = re.compile(rb"[ -~\r\n\t]\x00|\x00[ -~\r\n\t]")

#: A file of the type has at least one of these fields; other files mostly have none.
_ESSENTIAL = {
    "NetParameter": ("layer", "layers"),
    "BlobProto": ("data", "double_data"),
    "SolverState": ("iter",),
}


@dataclass
class Parsed(Generic[M]):
    """A message that was read from text, its file, and the positions of its fields."""

    message: M
    file: str | None
    positions: Positions
    #: The error for the first number that is not finite, which the text format allows.
    not_finite: CaffeError | None = None

    def locate(self, error: CaffeError) -> CaffeError:
        """Add the position in the file if `error` is about a field of this message."""
        if error.field and error.layer is None and error.file in (None, self.file):
            # A missing field is located at the message that lacks it.
            paths = (error.field, error.field.partition(".")[0])
            lines = (line for path in paths if (line := self.positions.line(path)) is not None)
            error.locate(file=self.file, line=next(lines, None))
        return error

    def check_finite(self) -> None:
        """Raise CaffeError if a number is not finite."""
        if self.not_finite is not None:
            raise self.not_finite


def read_text(path: str | Path, message_type: type[M]) -> Parsed[M]:
    """Read a text file, such as a .prototxt. Raises CaffeError with file, line and field."""
    file = str(path)
    raw = _read_bytes(path)
    if kind := _kind_of(raw):
        raise CaffeError(kind, file=file)
    text = encoding.decode(raw.removeprefix(codecs.BOM_UTF8))
    del raw  # it may be large
    return parse_text(text, message_type, file)


def parse_text(text: str, message_type: type[M], file: str | None = None) -> Parsed[M]:
    """Read a message from its text form; `file` is named in errors."""
    message = message_type()
    parser = Parser(text)
    try:
        positions = parser.parse(message)
    except CaffeError as error:
        raise error.locate(file=file) from None
    if parser.not_finite is not None:
        parser.not_finite.locate(file=file)
    return Parsed(message, file, positions, parser.not_finite)


def _kind_of(raw: bytes) -> str | None:
    """What is wrong with a file that is not text in a byte-based encoding, or None."""
    if kind := other_kind(raw[:HEAD]):
        return kind
    if raw.startswith(_UTF_16_AND_32) or len(_NULS.findall(raw[:_HEAD])) > _HEAD // 16:
        return "this is text in UTF-16 or UTF-32; save it as UTF-8"
    if raw.startswith(b"\x89HDF"):
        return "this is an HDF5 file, not a definition; a model is given with -weights"
    # The parser reports the position of stray bytes in a text.
    if _BINARY.search(raw[:_HEAD].rstrip(_TAIL)):
        return "this looks like a binary model; give it with -weights"
    return None


def to_text(message: Message) -> str:
    """The text form, exactly as C++ protobuf's `DebugString` prints it."""
    return "".join(_print(message, ""))


def write_text(path: str | Path, message: Message) -> None:
    """Write the text form to a file, completely or not at all."""
    write_atomically(path, to_text(message).encode())


def read_binary(path: str | Path, message_type: type[M]) -> M:
    """Read a .caffemodel, .binaryproto or .solverstate.

    Raises CaffeError when the file is of another kind, truncated or larger than 2 GiB.
    """
    file = str(path)
    raw = _read_bytes(path)
    message = message_type()
    kind = message.DESCRIPTOR.name
    if not raw:
        raise CaffeError(f"is not a {kind}: the file is empty", file=file)
    try:
        parse(message, raw, renumber_layers if kind == "NetParameter" else None)
        known = {field.name for field, _ in message.ListFields()}
    except DecodeError:
        known = set()
    except CaffeError as error:
        raise error.locate(file=file) from None
    if known.isdisjoint(_ESSENTIAL.get(kind, known)):
        is_text = not _BINARY.search(raw)
        reason = "it looks like a text file" if is_text else "truncated or another kind of file"
        reason = other_kind(raw[:HEAD]) or reason
        raise CaffeError(f"is not a {kind}: {reason}", file=file)
    return message


def write_binary(path: str | Path, message: Message) -> None:
    """Write the binary form to a file, completely or not at all. Raises CaffeError above 2 GiB."""
    write_pieces(path, [serialize(message)])


def write_pieces(path: str | Path, pieces: Sequence[Piece]) -> None:
    """The same with a message in the wire format, in pieces.

    Models and states are written this way, because protobuf would make several copies of them, and
    end the process if there is no memory for these.
    """
    size = sum(map(len, pieces))
    if size > MAX_BYTES:
        raise CaffeError(
            f"cannot be written: {size} bytes are more than the 2 GiB that protobuf can read",
            file=str(path),
        )
    write_atomically(path, *pieces)


def _read_bytes(path: str | Path) -> bytes:
    path = Path(encoding.on_disk(str(path)))
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise CaffeError("is larger than 2 GiB, which protobuf cannot read", file=str(path))
        return read_file(path)
    except FileNotFoundError:
        raise CaffeError("there is no such file", file=str(path)) from None
    except OSError as error:
        raise CaffeError(f"cannot be read: {error.strerror}", file=str(path)) from None


def _print(message: Message, indent: str) -> Iterator[str]:
    for field, value in message.ListFields():
        for item in value if is_repeated(field) else (value,):
            if field.message_type is None:
                yield f"{indent}{field.name}: {print_value(field, item)}\n"
            else:
                yield f"{indent}{field.name} {{\n"
                yield from _print(item, indent + "  ")
                yield f"{indent}}}\n"
