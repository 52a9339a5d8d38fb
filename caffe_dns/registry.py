"""Tables of what files name: layer types, fillers, rate policies, solver types, export formats.

A decorator registers each entry where it is defined. Registering a name twice is a programming
error; an unknown one is looked for in installed plugins, and the error then lists the known names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar, cast

from caffe_dns.errors import CaffeError, nearest
from caffe_dns.plugins import load_installed

#: All tables created so far, by kind.
_tables: dict[str, Registry[Any]] = {}

T = TypeVar("T")
Entry = TypeVar("Entry", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Classes or functions by the name that files give them. `kind` is the noun for messages.

    They are listed by name or in the order of registration.
    """

    def __init__(self, kind: str, *, by_name: bool = True) -> None:
        self.kind = kind
        self._by_name = by_name
        self._entries: dict[str, T] = {}
        _tables[kind] = self

    def register(self, *names: str) -> Callable[[Entry], Entry]:
        """Decorator: register a class or function under each of `names`."""

        def enter(entry: Entry) -> Entry:
            for name in names:
                self.add(name, cast(T, entry))
            return entry

        return enter

    def add(self, name: str, entry: T) -> None:
        """Register something under a name that is not taken yet."""
        if name in self._entries:
            raise ValueError(f"{self.kind} '{name}' is registered twice")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            load_installed()
        try:
            return self._entries[name]
        except KeyError:
            raise CaffeError(
                f"unknown {self.kind} '{name}'{nearest(name, list(self))}; known: {', '.join(self)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries) if self._by_name else list(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries


def is_missing(kind: str, name: str) -> bool:
    """Whether a table of this kind exists, and neither it nor a plugin has this name."""
    table = _tables.get(kind)
    if not table or name in table:
        return False
    load_installed()
    return name not in table
