"""What all pictures have in common: colours, legends beside the axes, and file formats.

matplotlib is an extra of the package: `check_matplotlib` says so before any work is done. What is
drawn is up to `sensitivity` and `curves_chart`.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from caffe_dns.errors import CaffeError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: What a picture's file can be, by its ending. A page is made in `page`.
FORMS = ("png", "svg", "html")

#: Colours that people with any kind of colour vision tell apart (Okabe and Ito).
_FEW = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
#: Inches for the axes and what stands to their left.
_WIDTH = 8.0
_LEGEND_ROWS = 14
_STYLE: Any = {
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.fontsize": "small",
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "svg.hashsalt": "dns",
    "text.parse_math": False,
}


def check_matplotlib() -> None:
    """Raise CaffeError, which says what to install, when matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise CaffeError("pictures need a package: pip install matplotlib") from None


def form_of(path: str) -> str:
    """The form that a file's ending asks for. Raises CaffeError for an unknown ending."""
    form = Path(path).suffix.lower().removeprefix(".")
    if form not in FORMS:
        raise CaffeError(
            f"the ending says which kind of picture; .{', .'.join(FORMS)} are known", file=path
        )
    return form


def new_figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels one below the other with a common x axis; `height` of each in inches."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, 0.6 + height * panels), layout="constrained")
        axes = figure.subplots(panels, 1, sharex=True, squeeze=False)
    return figure, list(axes[:, 0])


def colours(count: int) -> list[Any]:
    """`count` colours: strong ones if they are few, else steps from dark to light."""
    if count <= len(_FEW):
        return list(_FEW[:count])
    import matplotlib as mpl

    scale = mpl.colormaps["turbo"]
    return [scale(0.03 + 0.94 * index / (count - 1)) for index in range(count)]


def add_legend(axes: Axes) -> None:
    """Name the lines to the right of the axes; the figure grows as the names need it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    columns = 1 + (len(handles) - 1) // _LEGEND_ROWS
    width = _WIDTH + columns * (0.6 + 0.075 * max(map(len, labels)))
    figure = axes.get_figure()
    if isinstance(figure, Figure):
        figure.set_figwidth(max(figure.get_figwidth(), width))
    with mpl.rc_context(_STYLE):
        axes.legend(
            handles,
            labels,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0.0,
            ncols=columns,
            alignment="left",
        )


def legend_label(name: str) -> str:
    """A name as a legend shows it; matplotlib hides those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name


def save(figure: Figure, form: str) -> bytes:
    """The figure as a file of this form, png or svg."""
    import matplotlib as mpl

    stream = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    metadata: dict[str, Any] = nothing if form == "svg" else {}
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # Names in scripts that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(stream, format=form, dpi=130, metadata=metadata)
    return stream.getvalue()
