"""Where the fields of a message are in the text that it was read from.

Code that finds something wrong with a value asks for its line; only then is the text parsed once
more. Noting every position during the first parse would take many times the text's size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from caffe_dns.proto.tokens import CLOSING, FIELDS, OPENING, Lines, Tokens

_STEP = re.compile(r"(\w+)(?:\[(\d+)\])?")


@dataclass(slots=True)
class Place:
    """One occurrence of a field: its offset in the text, and where the fields inside begin."""

    name: str
    offset: int
    inside: int | None


class Positions:
    """Lines, counted from 1, of everything in one text. Unknown places answer None."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._lines = Lines(text)
        self._found: list[Place | None] | None = None

    def line(self, path: str) -> int | None:
        """The line of a field by its path: `layer[2].param[1].lr_mult`; [0] may be left out."""
        return self._line(self._find(0, path))

    def layer_line(self, index: int) -> int | None:
        """The line on which the entry `index` of a net's `layer` (or `layers`) begins."""
        return self._line(self._layer(index))

    def field_line(self, index: int, path: str) -> int | None:
        """The line of a field of layer `index`, such as `convolution_param.kernel_size`."""
        return self._line(self._field(index, path))

    def field_column(self, index: int, path: str) -> int | None:
        """The column in which that field begins."""
        place = self._field(index, path)
        return None if place is None else self._lines.column(place.offset)

    def insert_layer(self) -> None:
        """Count a layer more in front, one that does not stand in the text."""
        self._layers.insert(0, None)

    def remove_layers(self, indices: set[int]) -> None:
        """Leave these layers out of the count, because the message has lost them."""
        if indices:
            self._found = [place for at, place in enumerate(self._layers) if at not in indices]

    @property
    def _layers(self) -> list[Place | None]:
        if self._found is None:
            places = list(_fields(self._text, 0, "layer", "layers"))
            self._found = [place for place in places if place.name == "layer"]
            self._found = self._found or [place for place in places if place.name == "layers"]
        return self._found

    def _layer(self, index: int) -> Place | None:
        return self._layers[index] if 0 <= index < len(self._layers) else None

    def _field(self, index: int, path: str) -> Place | None:
        layer = self._layer(index)
        return None if layer is None or layer.inside is None else self._find(layer.inside, path)

    def _find(self, start: int | None, path: str) -> Place | None:
        """The field by its path from a message whose fields begin at `start`."""
        place: Place | None = None
        for name, number in _STEP.findall(path):
            if start is None:
                return None
            place = next(islice(_fields(self._text, start, name), int(number or 0), None), None)
            start = None if place is None else place.inside
        return place

    def _line(self, place: Place | None) -> int | None:
        return None if place is None else self._lines.line(place.offset)


def _fields(text: str, start: int, *names: str) -> Iterator[Place]:
    """The fields of these names of the message that begins at `start`, not those inside of others.

    The text has been parsed before.
    """
    tokens = Tokens(text, start, FIELDS)
    while tokens.next and tokens.next not in CLOSING:
        number = tokens.number
        name = tokens.take()
        colon = tokens.skip(":")
        inside = (
            tokens.offset(tokens.number) + 1 if name in names and tokens.next in OPENING else None
        )
        if inside and tokens.next == "[":
            yield from _items(text, inside, name)
        elif inside or (colon and name in names):
            yield Place(name, tokens.offset(number), inside)
        if tokens.next in OPENING:
            tokens.skip_value()


def _items(text: str, start: int, name: str) -> Iterator[Place]:
    """The values of a field that has them in a list, which begins at `start`."""
    tokens = Tokens(text, start)
    while tokens.next and tokens.next != "]":
        offset = tokens.offset(tokens.number)
        yield Place(name, offset, offset + 1 if tokens.next in OPENING else None)
        tokens.skip_value()
        tokens.skip(",")
