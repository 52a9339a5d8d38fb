"""Parses protobuf's text format into a message, with the position of every field.

Our own parser instead of protobuf's: it keeps positions, and its errors, the same with every
protobuf release, give line, column and what would be right. It accepts what C++ protobuf's
`TextFormat::Parse`, which Caffe calls, accepts for messages without extensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message

from caffe_dns import log
from caffe_dns.errors import CaffeError, nearest, shortened
from caffe_dns.proto import values
from caffe_dns.proto.fields import KnownField, is_usual, known_fields, memory_of, required_names
from caffe_dns.proto.idle_fields import idle_field, is_idle_engine
from caffe_dns.proto.known_forks import forks_with_field, instead
from caffe_dns.proto.positions import Positions
from caffe_dns.proto.tokens import (
    DEEPEST,
    OPENING,
    Lines,
    Token,
    Tokens,
    is_name,
    is_number,
    is_string,
    line_of_long_string,
    quoted,
)
from caffe_dns.proto.unknown import (
    OLD_TYPES,
    UnknownNames,
    misquoted,
    other_kind,
    owners,
)

_CLOSING = {"{": "}", "<": ">"}
#: Stands for the opening brace of the outermost message, whose errors have no column.
_WHOLE = Token("", -1)
#: Bytes of memory allowed for the messages of any text, and per byte of text. A net has three
#: copies while it is built. A layer of one line takes 20 times its size, one of nine lines 6 times.
_MOST_MEMORY, _PER_LETTER = 64 << 20, 5.3


class Parser:
    """Parses one text, once. Errors are CaffeErrors with the line and, where known, the field."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = Lines(text)
        #: Bytes of memory that further messages may take.
        self._left = _MOST_MEMORY + int(_PER_LETTER * len(text))
        self._tokens = Tokens(text)
        #: No run of values is looked for before this token.
        self._one_by_one = 0
        #: Fields about a fork's precision that have been warned about.
        self._rounded: set[str] = set()
        self._unknown = UnknownNames()
        #: The error for the first number that is not finite.
        self.not_finite: CaffeError | None = None
        #: Names of the fields around the current token.
        self._path: list[str] = []
        #: The messages around the current token, with the brace that opened each.
        self._open: list[tuple[Descriptor, Token]] = []

    def parse(self, message: Message) -> Positions:
        """Merge the text into `message`."""
        try:
            self._body(message, _WHOLE, None)
        except CaffeError as error:
            raise self._unknown.first_error or error from None
        self._unknown.complain(message, self._text)
        return Positions(self._text)

    # Structure ------------------------------------------------------------------------------------

    def _body(self, message: Message, opening: Token, closing: str | None) -> None:
        """The fields of a message up to and including its closing brace, or to the end."""
        descriptor = message.DESCRIPTOR
        self._open.append((descriptor, opening))
        if len(self._open) > DEEPEST:
            raise self._too_deep(opening)
        self._take(memory_of(descriptor), opening, "messages")
        fields, tokens = known_fields(descriptor), self._tokens
        #: The fields so far that may occur only once, and their tokens.
        given: dict[str, int] = {}
        while not (closing and tokens.skip(closing)):
            if not tokens.next:
                if closing:
                    raise self._error(opening, f"'{opening.text}' is never closed")
                break
            field = fields.get(tokens.next)
            self._path.append(shortened(tokens.next) if field is None else field.name)
            if field is None:
                self._foreign_field(descriptor)
            else:
                self._own_field(message, field, given)
            self._path.pop()
            if not tokens.skip(";"):
                tokens.skip(",")
        for name in required_names(descriptor):
            if not message.HasField(name):
                raise self._error(opening, f"{descriptor.name} needs the field '{name}'")
        self._open.pop()

    def _take(self, memory: int, token: Token, what: str) -> None:
        """Count more bytes. Raises CaffeError if they are too many."""
        self._left -= memory
        if self._left < 0:
            what = f"the {what} up to here take more memory than a text of its size may"
            raise self._error(token, what)

    def _own_field(self, message: Message, field: KnownField, given: dict[str, int]) -> None:
        """A field that the message has."""
        tokens, name = self._tokens, field.name
        if not field.repeated:
            if name in given:
                line = self._line(Token(name, given[name]))
                what = f"'{name}' is given twice, first on line {line}, but is not repeated"
                raise self._error(self._next(), what)
            given[name] = tokens.number
        tokens.take()
        if not tokens.skip(":") and not field.is_message:
            raise self._unexpected(self._next(), f"expected ':' after '{name}'")
        if field.repeated and tokens.skip("["):
            self._list(message, field)
            return
        self._value(message, field)
        if tokens.next == name and field.repeated and not field.is_message:
            self._run(message, field, name, ":")

    def _foreign_field(self, descriptor: Descriptor) -> None:
        """Handle a token that is not the name of a field that the message has."""
        token = self._next()
        if is_name(token.text):
            self._step_over(Token(shortened(token.text), token.number), descriptor)
            return
        self._path.pop()
        if token.text in ("}", ">"):
            raise self._error(token, f"'{token.text}' has no partner")
        advice = " (a comment begins with '#')" if token.text == "/" else ""
        offset = self._offset(token)
        if is_number(token.text) and self._text[offset - 1 : offset] == ",":
            advice = " (a number has a point, not a comma)"
        raise self._unexpected(token, f"expected the name of a field{advice}")

    def _step_over(self, token: Token, descriptor: Descriptor) -> None:
        """Skip the value of a fork's field if it changes nothing here."""
        idle = idle_field(descriptor.name, token.text)
        if idle is None:
            self._note_field(lambda: self._unknown_field(token, descriptor), token, descriptor)
            self._skip_value()
            return
        self._tokens.skip(":")
        if idle.is_message and self._tokens.next in _CLOSING:
            self._skip_value()
            if idle.rounds:
                self._warn_of_rounding(token, "its settings")
            return
        negative = "-" if self._tokens.skip("-") else ""
        value = self._next()
        quoted = is_string(value.text)
        if not (quoted or is_name(value.text) or is_number(value.text)):
            raise self._unexpected(value, f"expected a value after '{token.text}'")
        text = negative + (value.text[1:-1] if quoted else value.text)
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
            self._warn_of_rounding(token, shortened(text))

    def _warn_of_rounding(self, token: Token, value: str) -> None:
        """Warn once that a field about precision is ignored."""
        if token.text not in self._rounded:
            self._rounded.add(token.text)
            line = self._line(token)
            log.warning(f"{'.'.join(self._path)}: {value} (line {line}) is left to --precision")

    def _note_field(
        self, make: Callable[[], CaffeError], token: Token, descriptor: Descriptor
    ) -> None:
        forks = forks_with_field(descriptor.name, token.text)
        self._note(make, token, f"'{token.text}' in {descriptor.name}", forks)

    def _note(
        self, make: Callable[[], CaffeError], token: Token, name: str, forks: str | None
    ) -> None:
        """Note that something is unknown; it is reported when the rest has been read."""
        self._unknown.note(make, name, lambda: self._line(token), forks)

    def _skip_value(self) -> None:
        """Skip the value of an unknown field, whatever it is."""
        self._tokens.skip(":")
        wrong = self._tokens.skip_value()
        if wrong is not None:
            deep = wrong.text in OPENING
            raise self._too_deep(wrong) if deep else self._unexpected(wrong, "expected a value")

    def _list(self, message: Message, field: KnownField) -> None:
        """The rest of `field: [a, b, c]`."""
        tokens = self._tokens
        if tokens.skip("]"):
            return
        while True:
            self._value(message, field)
            if tokens.next == "," and not field.is_message:
                self._run(message, field, ",")
            if not tokens.skip(","):
                if tokens.skip("]"):
                    return
                raise self._unexpected(self._next(), "expected ',' or ']'")

    def _run(self, message: Message, field: KnownField, *before: str) -> None:
        """A run of single-token values, with these tokens before each, parsed together.

        If one is wrong or not finite, all are left to be parsed one by one.
        """
        tokens = self._tokens
        if tokens.number < self._one_by_one:
            return
        if negative := not (texts := tokens.alike(*before)):
            before = (*before, "-")
            texts = tokens.alike(*before)
        try:
            known = {text: field.read_one(text, negative) for text in set(texts)}
        except ValueError:
            known = {}
        self._take(len(texts) * field.memory, Token(tokens.next, tokens.number), "values")
        if known and all(map(is_usual, known.values())):
            getattr(message, field.name).extend([known[text] for text in texts])
            tokens.skip_alike(len(texts), *before)
            # After a short run, looking for another takes longer than parsing some values.
            alone = 0 if len(texts) >= 8 else 64
        else:
            alone = len(texts) * (len(before) + 1)
        self._one_by_one = tokens.number + alone

    def _value(self, message: Message, field: KnownField) -> None:
        if not field.is_message:
            value = self._scalar(field)
            if field.repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
            return
        opening = self._next()
        if opening.text not in _CLOSING:
            raise self._unexpected(opening, f"expected '{{' after '{field.name}'")
        child = getattr(message, field.name)
        if field.repeated:
            child = child.add()
        else:
            child.SetInParent()
        self._body(child, opening, _CLOSING[opening.text])

    def _scalar(self, field: KnownField) -> Any:
        tokens = self._tokens
        text, number = tokens.next, tokens.number
        try:
            if field.read is None:
                return self._string(field)
            tokens.take()
            negative = text == "-"
            if negative:
                text += tokens.next
            value = field.read(tokens.take() if negative else text, negative)
        except ValueError as error:
            return self._foreign_value(Token(shortened(text), number), field, str(error))
        if not is_usual(value):
            # Clipping at infinity is no clipping.
            clips = abs(value) == math.inf and "clip_param" in self._path
            if self.not_finite is None and not clips:
                self.not_finite = self._unexpected(Token(text, number), "expected a finite number")
        return value

    def _foreign_value(self, token: Token, field: KnownField, expected: str) -> Any:
        """A replacement for a fork's enum value that is unknown here, if that changes nothing.

        Otherwise the error is noted, with the fork; other errors are raised.
        """
        enum = field.descriptor.enum_type
        if enum is None or not is_name(token.text):
            raise self._unexpected(
                token, expected, misquoted(field.descriptor, token.text)
            ) from None
        if not is_idle_engine(enum.name, token.text):
            self._note_value(token, enum, expected)
        return field.descriptor.default_value

    def _note_value(self, token: Token, enum: EnumDescriptor, expected: str) -> None:
        forks = forks_with_field(enum.name, token.text)
        is_type = enum == OLD_TYPES
        name = f"layer type '{token.text}'" if is_type else f"{self._path[-1]}: {token.text}"

        def make() -> CaffeError:
            hint = nearest(token.text, list(enum.values_by_name))
            if forks:
                hint = f": this is of {forks}, which dns does not have{instead(token.text)}"
            if is_type:
                return self._error(token, f"unknown {name}", hint)
            return self._unexpected(token, expected, hint)

        self._note(make, token, name, forks)

    def _string(self, field: KnownField) -> str | bytes:
        """Adjacent strings, concatenated."""
        tokens = self._tokens
        if not is_string(tokens.next):
            raise ValueError("expected a string in quotes")
        pieces = bytearray()
        while is_string(tokens.next):
            pieces += values.read_string(tokens.take())
        return field.from_bytes(bytes(pieces))

    def _next(self) -> Token:
        """Skip the next token."""
        number = self._tokens.number
        return Token(self._tokens.take(), number)

    # Errors ---------------------------------------------------------------------------------------

    def _offset(self, token: Token) -> int:
        return 0 if token == _WHOLE else self._tokens.offset(token.number)

    def _line(self, token: Token) -> int:
        return self._lines.line(self._offset(token))

    def _error(self, token: Token, message: str, hint: str = "") -> CaffeError:
        if token != _WHOLE:
            message += f" (column {self._lines.column(self._offset(token))})"
        message += hint
        line = line_of_long_string(self._text, self._offset(token))
        if line is not None:  # usually a missing quote
            message += f"; the string of line {line} goes over several lines: is a quote missing?"
        return CaffeError(message, line=self._line(token), field=".".join(self._path) or None)

    def _too_deep(self, opening: Token) -> CaffeError:
        line = self._line(opening)
        return CaffeError(f"more than {DEEPEST} messages inside one another", line=line)

    def _unexpected(self, token: Token, expected: str, hint: str = "") -> CaffeError:
        if token.text in ("'", '"'):
            return self._error(token, f"the string that starts with {token.text} is never closed")
        found = quoted(token.text) if token.text else "the end of the file"
        if token.text in ("\x00", "\x1a"):
            hint = "; no text has this byte, so delete it"
        return self._error(token, f"{expected}, found {found}", hint)

    def _unknown_field(self, token: Token, descriptor: Descriptor) -> CaffeError:
        """The error for it; raised if parsing cannot continue."""
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
                line = self._line(opening)
                hint = f" ({outer.name} has it; is the '{opening.text}' of line {line} not closed?)"
                raise self._error(token, message, hint)
        near = nearest(name, list(descriptor.fields_by_name))
        return self._error(
            token, message, near or owners(name, [message for message, _ in self._open])
        )
