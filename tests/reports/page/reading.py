"""Reads pages: as a parser sees them, and as a browser does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

#: Elements that have no end tag.
_VOID = {"meta", "img", "br"}


@dataclass
class Element:
    """An element with its attributes, its own text, and the elements inside."""

    tag: str
    attributes: dict[str, str | None]
    text: str = ""
    inside: list[Element] = field(default_factory=list)

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """The elements below, with these attributes (`class_` for `class`)."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        own = [self] if tag in ("", self.tag) and wanted.items() <= self.attributes.items() else []
        return own + [found for one in self.inside for found in one.all(tag, **attributes)]

    def words(self) -> str:
        return self.text + "".join(one.words() for one in self.inside)


class Page(HTMLParser):
    """A page as a tree. Raises AssertionError for an element that is closed by another's tag."""

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self.root = Element("", {})
        self._open = [self.root]
        self.feed(raw.decode())
        self.close()
        assert self._open == [self.root], [element.tag for element in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self._open[-1].inside.append(element)
        if tag not in _VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self._open[-1].text += data

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        return self.root.all(tag, **attributes)

    def charts(self) -> dict[str, dict[str, Any]]:
        """What plotly is given, by the titles of the charts."""
        titles = {e.attributes["id"]: e.words() for e in self.all("figcaption") if e.attributes}
        return {
            titles[f"{script.attributes['data-for']}-title"]: json.loads(script.text)
            for script in self.all("script", class_="chart-data")
        }


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium of playwright's; the test is skipped where none is installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if program is None:
        pytest.skip("no Chromium is installed")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program)
        try:
            yield chromium
        finally:
            chromium.close()


def open_page(chromium: Any, file: Path, *, dark: bool, width: int) -> tuple[Any, list[str]]:
    """The page in a window of so many pixels, and the list of what it complains about."""
    scheme = "dark" if dark else "light"
    context = chromium.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, offline=True
    )
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"asks for {request.url}"))
    page.goto(file.as_uri())
    page.wait_for_selector("html[data-ready]", timeout=120_000)
    return page, said
