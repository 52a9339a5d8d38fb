"""The elements of a page. Nothing here knows how it looks; page.html does."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

#: Rows of the table behind a chart; of longer ones, so many are shown.
MOST_ROWS = 200


@dataclass(frozen=True)
class Table:
    """Cells as text. The first column names the rows; the others are numbers, or `words`."""

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Code:
    """Text of a file, folded away under its title."""

    kind: ClassVar[str] = "code"
    title: str
    text: str


@dataclass(frozen=True)
class Card:
    """A figure that is to be seen first, with what it is of, and a note beneath it."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Cards:
    """Some figures in a row."""

    kind: ClassVar[str] = "cards"
    cards: Sequence[Card]


@dataclass(frozen=True)
class Chart:
    """A chart of plotly's, and the same as a table.

    `traces` and `layout` are plotly's own. A trace may have a `colour`: the number of a colour that
    the page chooses, dark or light, of `colours` in all. `says` is what a screen reader says.
    """

    kind: ClassVar[str] = "chart"
    title: str
    says: str
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    table: Table
    colours: int = 8


@dataclass(frozen=True)
class Pictures:
    """Small pictures side by side, as PNG files: (title, what is to be seen, the file)."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[tuple[str, str, bytes]]


@dataclass(frozen=True)
class Node:
    """A box of a graph, with its upper left corner in pixels.

    `says` is what a screen reader says, `look` how the box is drawn (weighted, other), and `kept`
    the share that pruning left, where that is to be shown.
    """

    x: float
    y: float
    name: str
    lines: Sequence[str]
    says: str
    look: str
    kept: float | None


@dataclass(frozen=True)
class Graph:
    """Boxes and the ways between them (SVG paths), and the same as a table."""

    kind: ClassVar[str] = "graph"
    title: str
    width: float
    height: float
    node_width: float
    node_height: float
    nodes: Sequence[Node]
    edges: Sequence[str]
    table: Table


@dataclass
class Section:
    """Parts under a heading."""

    title: str
    parts: list[Any] = field(default_factory=list)


def chart_text(text: str) -> str:
    """Text as plotly shows it as it is, instead of taking its tags for markup."""
    return html.escape(text, quote=False)


def thinned(rows: Sequence[Any], most: int = MOST_ROWS) -> list[Any]:
    """At most so many of the rows, evenly spread, with the first and the last."""
    if len(rows) <= most:
        return list(rows)
    step = (len(rows) - 1) / (most - 1)
    return [rows[round(index * step)] for index in range(most)]
