"""Pages in a Chromium without a window, where one is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from caffe_dns.reports.page.render import render
from caffe_dns.reports.page.run import Entry, sections
from caffe_dns.reports.run_log import read_run_log
from tests.oracle import GOLDEN
from tests.reports.page.reading import browser, open_page

#: Where the pointer has to be to be above a point of a chart.
_PLACE = """([id, point]) => {
  const plot = document.getElementById(id), { xaxis, yaxis } = plot._fullLayout;
  const box = plot.getBoundingClientRect(), at = (axis, value) => axis._offset + axis.d2p(value);
  const { x, y } = plot.data[0];
  return [box.left + at(xaxis, x[point]), box.top + at(yaxis, y[point])];
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = read_run_log(str(GOLDEN / "logs" / "train.log"), "<img src=x onerror=alert(1)>")
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_bytes(render(run.run.name, sections([Entry(run)])))
    return path


def plot_of(page: Any, title: str) -> Any:
    return page.locator(f"figure:has(figcaption:text-is('{title}')) .plot")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_in_chromium(file: Path) -> None:
    with browser() as chromium:
        for dark, width in ((False, 1400), (True, 390)):
            page, said = open_page(chromium, file, dark=dark, width=width)
            check_layout(page, dark, width)
            check_pointer(page)
            check_keys(page)
            assert said == []


def check_layout(page: Any, dark: bool, width: int) -> None:
    """Nothing sticks out, and colours follow the reader's choice, also afterwards."""
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("#trouble").text_content() == ""

    def papers() -> tuple[str, str]:
        paper: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink: str = plot_of(page, "Scores").evaluate("plot => plot.layout.font.color")
        return paper, ink

    now = papers()
    assert (now == ("rgb(20, 23, 26)", "#e6e9ec")) == dark
    page.emulate_media(color_scheme="light" if dark else "dark")
    page.wait_for_function(
        "ink => document.querySelector('.plot').layout.font.color !== ink", arg=now[1]
    )
    assert (papers() == ("rgb(20, 23, 26)", "#e6e9ec")) == (not dark)


def check_pointer(page: Any) -> None:
    """A point tells its value to the pointer, and the chart can be zoomed into."""
    plot = plot_of(page, "Scores")
    plot.scroll_into_view_if_needed()
    x, y = page.evaluate(_PLACE, [plot.get_attribute("id"), 1])
    page.mouse.move(x, y)
    label = plot.locator(".hoverlayer .hovertext, .hoverlayer .legend").first
    label.wait_for()
    series = plot.evaluate("plot => [plot.data[0].x[1], plot.data[0].y[1]]")
    assert series[0] == 20 and f"{series[1]:g}" in label.text_content()
    before = plot.evaluate("plot => plot._fullLayout.xaxis.range")
    page.mouse.down()
    page.mouse.move(x + 80, y + 60, steps=4)
    page.mouse.up()
    page.wait_for_function(
        "([id, low]) => document.getElementById(id)._fullLayout.xaxis.range[0] > low",
        arg=[plot.get_attribute("id"), before[0]],
    )


def check_keys(page: Any) -> None:
    """The keyboard reaches each point, and what is there is said."""
    plot = plot_of(page, "Loss")
    plot.focus()
    live = page.locator(f"#{plot.get_attribute('id')}-live")
    page.keyboard.press("End")
    name, x, y = plot.evaluate("p => [p.data[0].name, p.data[0].x.at(-1), p.data[0].y.at(-1)]")
    assert live.text_content() == f"{name}: iteration {x}, loss {y:g}"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    name, x, y = plot.evaluate("plot => [plot.data[1].name, plot.data[1].x[0], plot.data[1].y[0]]")
    assert live.text_content() == f"{name}: iteration {x}, loss {y:g}"
    page.keyboard.press("+")
    page.keyboard.press("0")
    assert plot.evaluate("plot => plot._fullLayout.xaxis.autorange")
