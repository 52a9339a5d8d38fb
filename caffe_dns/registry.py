"""Name -> class tables: layers by type, solvers by type.

A name that is registered twice is a programming error; an unknown one lists the known names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from caffe_dns.errors import CaffeError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes by the name that files give them. `kind` is the noun for messages."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, type[T]] = {}

    def register(self, *names: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: enter the class under each of `names`."""

        def enter(cls: type[T]) -> type[T]:
            for name in names:
                if name in self._entries:
                    raise ValueError(f"{self.kind} '{name}' is registered twice")
                self._entries[name] = cls
            return cls

        return enter

    def __getitem__(self, name: str) -> type[T]:
        try:
            return self._entries[name]
        except KeyError:
            raise CaffeError(
                f"unknown {self.kind} '{name}'{nearest(name, list(self))}; known: {', '.join(self)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
