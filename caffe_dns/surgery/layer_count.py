"""How many parameters pruning left, and the lines that report it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerCount:
    """How many of a layer's weights and biases are not zero, with masks applied."""

    name: str
    kept: int
    total: int


def count_line(count: LayerCount) -> str:
    """The line about a layer."""
    share = 100 * count.kept / count.total
    return f"Kept {count.name}: {count.kept} of {count.total} parameters ({share:.2f} %)"


def sum_line(kept: int, total: int) -> str:
    """The line about the whole net."""
    ratio = f"{total / kept:.1f} times smaller" if kept else "nothing is left"
    return f"Kept in all: {kept} of {total} parameters ({ratio})"
