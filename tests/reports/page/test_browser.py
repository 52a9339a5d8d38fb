"""Pages in a Chromium without a window, where one is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("plotly", reason="the extra 'report' is not installed")

from caffe_dns.reports.page.render import render
from caffe_dns.reports.page.run import Entry, sections
from caffe_dns.reports.run_files import find_run
from caffe_dns.reports.run_net import load_run_net
from tests.oracle import GOLDEN
from tests.reports.page.reading import browser, open_page

#: Where the pointer has to be to be above a point of a chart.
_PLACE = """(id) => {
  const plot = document.getElementById(id), { xaxis, yaxis } = plot._fullLayout;
  const box = plot.getBoundingClientRect(), at = (axis, value) => axis._offset + axis.d2p(value);
  const { x, y } = plot.data[0];
  return [box.left + at(xaxis, x.at(-1)), box.top + at(yaxis, y.at(-1))];
}"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with a net, whose name and layers' names are markup."""
    name = "<img src=x onerror=alert(1)>"
    text = (GOLDEN / "runs" / "surgery_holmes" / "caffe.log").read_text()
    for layer in ("conv1", "ip2"):
        text = text.replace(f'name: "{layer}"', f'name: "{layer}{name}"')
    folder = tmp_path_factory.mktemp("page")
    (folder / "a.log").write_text(text)
    files = find_run(str(folder / "a.log"), name)
    path = folder / "report.html"
    entry = Entry(files.log, load_run_net(files, [(1, 28, 28)]))
    path.write_bytes(render(name, sections([entry])))
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
            check_graph(page)
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
    x, y = page.evaluate(_PLACE, plot.get_attribute("id"))
    page.mouse.move(x, y)
    label = plot.locator(".hoverlayer .hovertext, .hoverlayer .legend").first
    label.wait_for()
    iteration, score = plot.evaluate("plot => [plot.data[0].x.at(-1), plot.data[0].y.at(-1)]")
    assert iteration == 40 and f"{score:g}" in label.text_content()
    before = plot.evaluate("plot => plot._fullLayout.xaxis.range")
    page.mouse.down()
    page.mouse.move(x - 80, y + 60, steps=4)
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


def check_graph(page: Any) -> None:
    """Each layer can be reached, and says what it is."""
    nodes = page.locator("svg .node")
    assert nodes.count() == 9  # the ReLU is told with what it works on
    nodes.nth(2).focus()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith(
        "conv1<img src=x onerror=alert(1)>, Convolution, output 1x8x24x24, 208 parameters"
    )
