"""Reading protobuf's text format into a message, with the place of every field.

Our own parser instead of protobuf's: it keeps positions, and its errors, the same with every
protobuf release, name line, column and what would be right. It accepts what C++ protobuf's
`TextFormat::Parse`, which Caffe calls, accepts for messages without extensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.encoding import decode, on_disk
from caffe_dns.errors import CaffeError, nearest
from caffe_dns.proto import values
from caffe_dns.proto.fields import is_repeated, required_names
from caffe_dns.proto.idle_fields import idle_field, is_idle_engine
from caffe_dns.proto.known_forks import forks_with_field, instead
from caffe_dns.proto.positions import Positions
from caffe_dns.proto.tokens import Lines, Token, Tokens
from caffe_dns.proto.unknown import Unknown, foreign_layers, other_kind, with_others

_CLOSING = {"{": "}", "<": ">"}
#: With so many unknown names, it is another kind of file.
_MOST_UNKNOWN = 1000
#: The enum of the layer types of 2014.
_OLD_TYPES = "LayerType"
#: As deep as protobuf reads binary messages.
_DEEPEST = 100
#: From here on, a number becomes infinite as a float.
_BEYOND_FLOAT = 2.0**128 - 2.0**103


class Parser:
    """Parses one text, once. Errors are CaffeErrors with the line and, where known, the field."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = Lines(text)
        self._tokens = Tokens(text)
        #: Fields about the precision of a fork that were warned of.
        self._rounded: set[str] = set()
        #: The error for the first that is unknown, and what else is, each name once.
        self._unknown: dict[str, Unknown] = {}
        self._first_error: CaffeError | None = None
        #: The error for the first number that is not finite, for whoever cannot use those.
        self.not_finite: CaffeError | None = None
        #: Names of the fields around the current token.
        self._path: list[str] = []
        #: The messages around the current token, with the brace that opened each.
        self._open: list[tuple[Descriptor, Token]] = []

    def parse(self, message: Message) -> Positions:
        """Merge the text into `message`."""
        try:
            self._body(message, Token("symbol", "", 0), None)
        except CaffeError as error:
            raise self._first_error or error from None
        if self._first_error is not None:
            layers = foreign_layers(message, Positions(self._text))
            raise with_others(self._first_error, [*self._unknown.values(), *layers])
        return Positions(self._text)

    # Structure ------------------------------------------------------------------------------------

    def _body(self, message: Message, opening: Token, closing: str | None) -> None:
        """The fields of a message up to and including its closing brace, or to the end."""
        descriptor = message.DESCRIPTOR
        self._open.append((descriptor, opening))
        if len(self._open) > _DEEPEST:
            line = self._lines.line(opening.offset)
            raise CaffeError(f"more than {_DEEPEST} messages inside one another", line=line)
        #: The fields so far that may come once only, and where they stand.
        given: dict[str, int] = {}
        while not (closing and self._take(closing)):
            if self._tokens.next.kind == "end":
                if closing:
                    raise self._error(opening, f"'{opening.text}' is never closed")
                break
            self._field(message, given)
        for name in required_names(descriptor):
            if not message.HasField(name):
                raise self._error(opening, f"{descriptor.name} needs the field '{name}'")
        self._open.pop()

    def _field(self, message: Message, given: dict[str, int]) -> None:
        token = self._next()
        if token.text in ("}", ">"):
            raise self._error(token, f"'{token.text}' has no partner")
        if token.kind != "name":
            advice = " (a comment begins with '#')" if token.text == "/" else ""
            if token.kind == "number" and self._text[token.offset - 1 : token.offset] == ",":
                advice = " (a number has a point, not a comma)"
            raise self._unexpected(token, f"expected the name of a field{advice}")
        name = token.text
        self._path.append(name)
        field = message.DESCRIPTOR.fields_by_name.get(name)
        if field is None:
            self._foreign_field(token, message.DESCRIPTOR)
        else:
            self._own_field(token, message, field, given)
        self._path.pop()
        if not self._take(";"):
            self._take(",")

    def _own_field(
        self, token: Token, message: Message, field: FieldDescriptor, given: dict[str, int]
    ) -> None:
        """What follows the name of a field that the message has."""
        name = token.text
        repeated = is_repeated(field)
        if not repeated:
            if name in given:
                line = self._lines.line(given[name])
                what = f"'{name}' is given twice, first on line {line}, but is not repeated"
                raise self._error(token, what)
            given[name] = token.offset
        if field.message_type is None:
            self._expect(":", f"after '{name}'")
        else:
            self._take(":")
        if repeated and self._take("["):
            self._list(message, field)
        else:
            self._value(message, field, repeated)

    def _foreign_field(self, token: Token, descriptor: Descriptor) -> None:
        """Step over the value of a field of a fork if it changes nothing here."""
        idle = idle_field(descriptor.name, token.text)
        if idle is None:
            self._note_field(lambda: self._unknown_field(token, descriptor), token, descriptor)
            self._skip_value()
            return
        self._take(":")
        if idle.is_message and self._tokens.next.text in _CLOSING:
            self._skip_value()
            if idle.rounds:
                self._warn_of_rounding(token, "its settings")
            return
        negative = "-" if self._take("-") else ""
        value = self._next()
        if value.kind not in ("name", "number", "string"):
            raise self._unexpected(value, f"expected a value after '{token.text}'")
        text = negative + (value.text[1:-1] if value.kind == "string" else value.text)
        if not idle.takes(text):
            known = " or ".join(map(str, (idle.values or ())[:1]))
            message = (
                f"'{token.text}' of {forks_with_field(descriptor.name, token.text)} is not "
                f"supported but for {known}, with which it changes nothing"
            )
            self._note_field(
                lambda: self._error(token, message, instead(token.text)), token, descriptor
            )
            return
        if not idle.is_exact(text):
            self._warn_of_rounding(token, text)

    def _warn_of_rounding(self, token: Token, value: str) -> None:
        """Say of a field about precision, once, that it is not heeded."""
        if token.text not in self._rounded:
            self._rounded.add(token.text)
            line = self._lines.line(token.offset)
            log.warning(f"{'.'.join(self._path)}: {value} (line {line}) is left to --precision")

    def _note_field(
        self, make: Callable[[], CaffeError], token: Token, descriptor: Descriptor
    ) -> None:
        forks = forks_with_field(descriptor.name, token.text)
        self._note(make, token, f"'{token.text}' in {descriptor.name}", forks)

    def _note(
        self, make: Callable[[], CaffeError], token: Token, name: str, forks: str | None
    ) -> None:
        """Keep that something is unknown until the rest is read.

        The error is made for the first only: to look for what was meant and for places takes long.
        """
        if self._first_error is None:
            self._first_error = make()
        elif len(self._unknown) == _MOST_UNKNOWN:
            raise self._first_error
        elif name not in self._unknown:
            self._unknown[name] = Unknown(name, self._lines.line(token.offset), forks)

    def _skip_value(self) -> None:
        """Step over the value of a field that is unknown, whatever it is."""
        self._take(":")
        wrong = self._tokens.skip_value()
        if wrong is not None:
            raise self._unexpected(wrong, "expected a value")

    def _list(self, message: Message, field: FieldDescriptor) -> None:
        """The rest of `field: [a, b, c]`."""
        if self._take("]"):
            return
        while True:
            self._value(message, field, True)
            if self._take("]"):
                return
            self._expect(",", "or ']'")

    def _value(self, message: Message, field: FieldDescriptor, repeated: bool) -> None:
        if field.message_type is None:
            value = self._scalar(field)
            if repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
            return
        opening = self._next()
        if opening.text not in _CLOSING:
            raise self._unexpected(opening, f"expected '{{' after '{field.name}'")
        child = getattr(message, field.name)
        if repeated:
            child = child.add()
        else:
            child.SetInParent()
        self._body(child, opening, _CLOSING[opening.text])

    def _scalar(self, field: FieldDescriptor) -> Any:
        token = self._tokens.next
        try:
            if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                return self._read_string(field)
            negative = self._take("-")
            if negative and self._tokens.next.kind != "end":
                token = token._replace(text="-" + self._tokens.next.text)
            return self._read_number(field, negative, token)
        except ValueError as error:
            if field.enum_type is None or token.kind != "name":
                raise self._unexpected(token, str(error)) from None
            self._foreign_value(token, field.enum_type, str(error))
            return field.default_value

    def _foreign_value(self, token: Token, enum: EnumDescriptor, expected: str) -> None:
        """Keep the error about a name that is no value of an enum here, and whose it is."""
        forks = forks_with_field(enum.name, token.text)
        is_type = enum.name == _OLD_TYPES
        name = f"layer type '{token.text}'" if is_type else f"{self._path[-1]}: {token.text}"

        def make() -> CaffeError:
            hint = f": this is of {forks}, which dns does not have{instead(token.text)}"
            if is_type:
                near = nearest(token.text, list(enum.values_by_name))
                return self._error(token, f"unknown {name}", hint if forks else near)
            return self._unexpected(token, expected, hint if forks else "")

        self._note(make, token, name, forks)

    def _read_number(self, field: FieldDescriptor, negative: bool, shown: Token) -> Any:
        """A number, a boolean or an enum's value; `shown` is what errors say was there."""
        token = self._next()
        if token.kind not in ("name", "number"):
            token = token._replace(kind="name")
        if field.enum_type is not None:
            if is_idle_engine(field.enum_type.name, token.text):
                return field.default_value
            return values.read_enum(field.enum_type, token, negative)
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return values.read_bool(token, negative)
        value = values.read_number(field, token, negative)
        if isinstance(value, float) and not abs(value) < _BEYOND_FLOAT:
            # A clip to infinity is none.
            clips = abs(value) == math.inf and "clip_param" in self._path
            if self.not_finite is None and not clips:
                self.not_finite = self._unexpected(shown, "expected a finite number")
        return value

    def _read_string(self, field: FieldDescriptor) -> str | bytes:
        """Adjacent strings, which belong together."""
        if self._tokens.next.kind != "string":
            raise ValueError("expected a string in quotes")
        pieces = bytearray()
        while self._tokens.next.kind == "string":
            values.append_string(pieces, self._next())
        raw = bytes(pieces)
        return raw if field.type == FieldDescriptor.TYPE_BYTES else decode(raw)

    # Tokens ---------------------------------------------------------------------------------------

    def _next(self) -> Token:
        return self._tokens.take()

    def _take(self, text: str) -> bool:
        """Step over the next token if it reads `text`."""
        return self._tokens.skip(text)

    def _expect(self, text: str, where: str) -> None:
        if not self._take(text):
            raise self._unexpected(self._tokens.next, f"expected '{text}' {where}")

    # Errors ---------------------------------------------------------------------------------------

    def _error(self, token: Token, message: str, hint: str = "") -> CaffeError:
        place = f" (column {self._lines.column(token.offset)})" if token.text else ""
        return CaffeError(
            message + place + hint + self._long_string(token),
            line=self._lines.line(token.offset),
            field=".".join(self._path) or None,
        )

    def _unexpected(self, token: Token, expected: str, hint: str = "") -> CaffeError:
        if token.kind == "unclosed":
            return self._error(token, f"the string that starts with {token.text} is never closed")
        found = token.text if token.kind == "end" else _quoted(token.text)
        if token.text in "\x00\x1a":
            hint = "; no text has this byte, so delete it"
        return self._error(token, f"{expected}, found {found}", hint)

    def _unknown_field(self, token: Token, descriptor: Descriptor) -> CaffeError:
        """The error for it; raises it where what follows would make no sense either."""
        name = token.text
        message = f"unknown field '{name}' in {descriptor.name}"
        fork = forks_with_field(descriptor.name, name)
        if fork is not None:
            hint = f": this is a field of {fork}, which dns does not have{instead(name)}"
            return self._error(token, message, hint)
        if len(self._open) == 1 and (other := other_kind(descriptor.name, name)):
            raise self._error(token, message, f": {other}")
        for outer, _ in reversed(self._open[:-1]):
            if name in outer.fields_by_name:
                opening = self._open[-1][1]
                line = self._lines.line(opening.offset)
                hint = f" ({outer.name} has it; is the '{opening.text}' of line {line} not closed?)"
                raise self._error(token, message, hint)
        return self._error(token, message, nearest(name, list(descriptor.fields_by_name)))

    def _long_string(self, token: Token) -> str:
        """A hint for errors after a string over several lines: mostly it lacks its quote."""
        start = self._tokens.long_string
        if start is None or start >= token.offset:
            return ""
        line = self._lines.line(start)
        return f"; the string of line {line} goes over several lines: is a quote missing?"


def _quoted(text: str) -> str:
    """A token for messages; of what is no ASCII, the bytes or the number of the character."""
    return ascii(on_disk(text)).replace("\\udc", "\\x")
