"""Writes the file of a page.

plotly and Jinja2 are an extra of the package: `check_libraries` says so before any work is done.
plotly's program is compressed in the page, which makes it a third as long.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

from caffe_dns.encoding import on_disk
from caffe_dns.errors import CaffeError
from caffe_dns.files import check_target
from caffe_dns.reports.page.parts import Section

_PACKAGE = "caffe_dns.reports.page"


def check_page(file: str) -> None:
    """Raise CaffeError where no page of this name can be made: before long work, say."""
    if not file.lower().endswith((".html", ".htm")):
        raise CaffeError("a page's name ends in .html", file=file)
    check_libraries()
    check_target(file)


def check_libraries() -> None:
    """Raise CaffeError, which says what to install, when a library is missing."""
    try:
        import jinja2  # noqa: F401
        import plotly.offline  # noqa: F401
    except ImportError:
        raise CaffeError("pages need two packages: pip install plotly jinja2") from None


def prepare() -> None:
    """Do now what the first `render` would take time for."""
    _environment().get_template("page.html")
    _library()


def render(title: str, sections: Sequence[Section]) -> bytes:
    """The page as a file."""
    template = _environment().get_template("page.html")
    text = template.render(title=title, sections=sections, library=_library())
    # What is no UTF-8 in names becomes a question mark.
    return on_disk(text).encode("utf-8", "replace")


@cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(_PACKAGE, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["data"] = _data
    environment.filters["base64"] = lambda raw: base64.b64encode(raw).decode()
    return environment


@cache
def _library() -> str:
    """plotly's program: gzip, as base64."""
    from plotly.offline import get_plotlyjs

    packed = gzip.compress(get_plotlyjs().encode(), mtime=0)
    return base64.b64encode(packed).decode()


def _data(value: Any) -> Any:
    """JSON that can stand in a <script> element: nothing in it ends the element."""
    from markupsafe import Markup

    text = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False)
    for mark in "<>&":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return Markup(text)


def _finite(value: Any) -> Any:
    """The same with null for what JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
