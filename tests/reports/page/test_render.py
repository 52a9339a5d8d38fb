"""The page of some parts: what is in it, and that text stays text."""

from __future__ import annotations

import base64
import gzip
import math
import sys
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from caffe_dns.errors import CaffeError
from caffe_dns.reports.page.parts import (
    Card,
    Cards,
    Chart,
    Code,
    Pictures,
    Section,
    Table,
    Text,
    chart_text,
    thinned,
)
from caffe_dns.reports.page.render import check_libraries, render
from tests.reports.page.reading import Page

HOSTILE = [
    "</script><script>alert(1)</script>",
    "</style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "{{ 7 * 7 }}{% include 'page.js' %}",
    "<!-- --><b>bold</b>&lt;",
    "%{y}<br>$x$",
]


def chart(name: str, values: list[float]) -> Chart:
    trace = {"type": "scatter", "name": chart_text(name), "x": [0, 1], "y": values, "colour": 0}
    return Chart(name, name, [trace], {}, Table(name, [name, name], [[name, name]]))


def hostile_parts(name: str) -> list[Any]:
    return [
        Text(name),
        Table(name, [name, name], [[name, name]]),
        Code(name, name),
        Cards([Card(name, name, name)]),
        Pictures([(name, name, b"\x89PNG")]),
        chart(name, [1.0, 2.0]),
    ]


@pytest.mark.parametrize("name", HOSTILE)
def test_text_stays_text(name: str) -> None:
    tame = Page(render("name", [Section("name", hostile_parts("name"))]))
    page = Page(render(name, [Section(name, hostile_parts(name))]))
    assert [(e.tag, list(e.attributes)) for e in page.all()] == [
        (e.tag, list(e.attributes)) for e in tame.all()
    ]
    for there, here in zip(tame.all(), page.all(), strict=True):
        if here.tag not in ("style", "script"):
            assert here.text == there.text.replace("name", name)
    (figure,) = page.charts().values()
    assert figure["traces"][0]["name"] == name.replace("&", "&amp;").replace("<", "&lt;").replace(
        ">", "&gt;"
    )


def test_a_page_asks_for_no_other_file() -> None:
    raw = render("a", [Section("b", hostile_parts("c"))])
    page = Page(raw)
    assert not page.all("link")
    sources = [v for e in page.all() for n, v in e.attributes.items() if n in ("src", "href")]
    assert all(value and value.startswith(("data:", "#")) for value in sources)
    (style,) = page.all("style")
    assert "url(" not in style.text and "@import" not in style.text
    (packed,) = page.all("script", id="library")
    program = gzip.decompress(base64.b64decode(packed.text))
    assert b"plotly.js v" in program[:200]
    assert len(raw) < len(program) / 2


def test_for_every_screen_and_reader() -> None:
    page = Page(render("a", [Section("b", hostile_parts("c")), Section("d")]))
    (html,) = page.all("html")
    assert html.attributes["lang"] == "en"
    (viewport,) = page.all("meta", name="viewport")
    assert viewport.attributes["content"] == "width=device-width, initial-scale=1"
    (style,) = page.all("style")
    assert "prefers-color-scheme: dark" in style.text and "min-width" in style.text
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(set(ids)) == len(ids)
    for element in page.all():
        for name in ("aria-labelledby", "aria-describedby"):
            assert element.attributes.get(name, ids[0]) in ids
    (plot,) = page.all(class_="plot")
    assert plot.attributes["tabindex"] == "0"
    assert all(e.attributes["alt"] for e in page.all("img"))
    assert all(e.attributes["scope"] in ("col", "row") for e in page.all("th"))
    assert [e.attributes["href"] for e in page.all("a")] == ["#content", "#section-1", "#section-2"]


def test_values_that_json_does_not_have() -> None:
    page = Page(render("a", [Section("b", [chart("c", [math.nan, -math.inf])])]))
    assert page.charts()["c"]["traces"][0]["y"] == [None, None]


def test_names_that_are_not_unicode() -> None:
    stand_in = chr(0x10F700 + 0xE9)
    page = Page(render(f"caf{stand_in}", [Section("b", [chart(f"\udce9{stand_in}", [1, 2])])]))
    assert page.all("h1")[0].text == "caf?"


def test_long_tables_are_thinned() -> None:
    rows = thinned(list(range(1000)))
    assert len(rows) == 200 and rows[0] == 0 and rows[-1] == 999
    assert {b - a for a, b in pairwise(rows)} == {5, 6}
    assert thinned([1, 2]) == [1, 2]


@pytest.mark.parametrize("module", ["plotly.offline", "jinja2"])
def test_a_library_is_missing(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(CaffeError, match=r"^pages need two packages: pip install plotly jinja2$"):
        check_libraries()
