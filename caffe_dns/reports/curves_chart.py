"""A picture of training runs: loss, scores and sparsities against iterations, side by side.

The curves come from `curves`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_dns.reports import charts
from caffe_dns.reports.curves import Run, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DASHES = ("-", "--", ":", "-.")
#: A curve of fewer points gets a dot for each.
_FEW_POINTS = 40
#: From this ratio on, the largest and the smallest loss need a logarithmic axis.
_WIDE = 30
_SCORE_TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


def draw(runs: Sequence[Run]) -> Figure:
    """One panel for each kind of curve that any of the runs has."""
    from matplotlib.ticker import MaxNLocator

    panels = [kind for kind in ("losses", "scores", "sparsities") if _names(runs, kind)]
    figure, all_axes = charts.new_figure(len(panels), 3.0)
    for kind, axes in zip(panels, all_axes, strict=True):
        _draw_panel(axes, runs, kind)
        charts.add_legend(axes)
    figure.align_ylabels(all_axes)
    all_axes[-1].set_xlabel("iteration")
    all_axes[-1].xaxis.set_major_formatter("{x:,.0f}")
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _draw_panel(axes: Axes, runs: Sequence[Run], kind: str) -> None:
    """Lines of one kind: colours tell runs apart, except for layers, which they tell apart."""
    names = _names(runs, kind)
    by_run = len(runs) > 1 and kind != "sparsities"
    palette = charts.colours(len(runs) if by_run else len(names))
    for run_index, run in enumerate(runs):
        curves: dict[str, Series] = getattr(run, kind)
        for name_index, name in enumerate(names):
            if name not in curves:
                continue
            colour, dash = (run_index, name_index) if by_run else (name_index, run_index)
            label = f"{run.name}: {name}" if len(runs) > 1 else name
            style = {"color": palette[colour], "linestyle": _DASHES[dash % len(_DASHES)]}
            if kind == "losses" and name.startswith("train"):
                style |= {"alpha": 0.6, "linewidth": 1}
            _draw_curve(axes, curves[name], label, style)
    every = [series for run in runs for series in getattr(run, kind).values()]
    values = [value for series in every for value in series.values() if math.isfinite(value)]
    least, most = min(values, default=0.0), max(values, default=0.0)
    if kind == "sparsities":
        axes.set_ylabel("sparsity")
        axes.set_ylim(-0.02, 1.02)
    elif kind == "scores":
        axes.set_ylabel("accuracy" if all("acc" in name.lower() for name in names) else "output")
        if 0 <= least < 0.7 and 0.9 < most <= 1:
            _stretch_to_one(axes, most)
    else:
        axes.set_ylabel("loss")
        if least > 0 and most / least > _WIDE:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")


def _stretch_to_one(axes: Axes, best: float) -> None:
    """Give each tenfold decrease of the error the same room, so that good scores can be read."""
    from matplotlib.ticker import FixedLocator, NullLocator

    gap = max((1 - best) / 2, 1e-4)
    axes.set_yscale(
        "function",
        functions=(
            lambda score: -np.log10(np.maximum(1 - score, gap)),
            lambda place: 1 - 10.0**-place,
        ),
    )
    ticks = [tick for tick in _SCORE_TICKS if tick <= max(best, 1 - gap)]
    axes.yaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _draw_curve(axes: Axes, series: Series, label: str, style: dict[str, Any]) -> None:
    iterations = sorted(series)
    marker = "." if len(series) < _FEW_POINTS else ""
    axes.plot(
        iterations,
        [series[iteration] for iteration in iterations],
        label=charts.legend_label(label),
        marker=marker,
        **style,
    )


def _names(runs: Sequence[Run], kind: str) -> list[str]:
    """The names of all curves of one kind; those of training come first."""
    names = dict.fromkeys(name for run in runs for name in getattr(run, kind))
    return sorted(names, key=lambda name: kind == "losses" and name.startswith("test"))
