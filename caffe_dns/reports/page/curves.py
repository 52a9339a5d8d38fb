"""The curves of runs as charts of a page, side by side: loss, scores, rate, sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from caffe_dns import log
from caffe_dns.reports.curves import Run, Series
from caffe_dns.reports.page.parts import Chart, Section, Table, chart_text, thinned

_DASHES = ("solid", "dash", "dot", "dashdot")
#: A curve of fewer points gets a dot for each.
_FEW_POINTS = 60
#: Of longer curves so many points are drawn.
_MOST_POINTS = 4000
#: From this ratio on, the largest and the smallest value need a logarithmic axis.
_WIDE = 30
#: Up to so many curves, the values of all are shown beside the pointer.
_TOGETHER = 12

#: Runs with the curves of one kind that each has, by name.
_Curves = Sequence[tuple[Run, dict[str, Series]]]


def curve_section(runs: Sequence[Run]) -> Section:
    """A chart for each kind of curve that any of the runs has."""
    charts = [
        _chart("Scores", "score", runs, lambda run: run.scores),
        _chart("Loss", "loss", runs, lambda run: run.losses, log_axis=True),
        _chart(
            "Parameters kept",
            "share of the layer, %",
            runs,
            _kept_shares,
            log_axis=True,
            colour_names=True,
        ),
        _chart("Learning rate", "rate", runs, lambda run: {"rate": run.rates}, log_axis=True),
    ]
    return Section("Curves", [chart for chart in charts if chart is not None])


def _kept_shares(run: Run) -> dict[str, Series]:
    return {
        layer: {iteration: 100 * (1 - sparsity) for iteration, sparsity in series.items()}
        for layer, series in run.sparsities.items()
    }


def _chart(
    title: str,
    unit: str,
    runs: Sequence[Run],
    choose: Callable[[Run], dict[str, Series]],
    *,
    log_axis: bool = False,
    colour_names: bool = False,
) -> Chart | None:
    """Colours tell runs apart if there are several, else the names, as with `colour_names`."""
    curves = [(run, {name: s for name, s in choose(run).items() if s}) for run in runs]
    names = list(dict.fromkeys(name for _, own in curves for name in own))
    if not names:
        return None
    by_run = len(runs) > 1 and not colour_names
    traces = []
    for run_index, (run, own) in enumerate(curves):
        for name, series in own.items():
            name_index = names.index(name)
            colour, dash = (run_index, name_index) if by_run else (name_index, run_index)
            label = f"{run.name}: {name}" if len(runs) > 1 else name
            trace = _trace(label, series, colour, dash)
            if name in run.kept:
                trace |= _with_counts(run, name, trace["x"])
            traces.append(trace)
    layout = _layout(unit, [s for _, own in curves for s in own.values()], log_axis, len(traces))
    layout |= _end_marks(runs)
    table = _table(title, curves)
    many = "1 curve" if len(traces) == 1 else f"{len(traces)} curves"
    says = f"{title} against iterations, {many}, {_range(traces)}."
    colours = len(runs) if by_run else len(names)
    return Chart(title, says, traces, layout, table, colours)


def _trace(label: str, series: Series, colour: int, dash: int) -> dict[str, Any]:
    iterations = thinned(sorted(series), _MOST_POINTS)
    few = len(iterations) < _FEW_POINTS
    return {
        "type": "scatter",
        "mode": "lines+markers" if few else "lines",
        "name": chart_text(label),
        "x": iterations,
        "y": [series[iteration] for iteration in iterations],
        "colour": colour,
        "line": {"dash": _DASHES[dash % len(_DASHES)], "width": 1.6},
        "marker": {"size": 5},
    }


def _with_counts(run: Run, layer: str, iterations: Sequence[int]) -> dict[str, Any]:
    """What is shown beside the pointer for a layer: its parameters, and what came back."""
    counts = [[run.kept[layer].get(i), run.spliced[layer].get(i)] for i in iterations]
    shown = "%{y:.4g} % (%{customdata[0]:,} kept, %{customdata[1]:,} spliced back)"
    return {"customdata": counts, "hovertemplate": shown}


def _layout(unit: str, every: Sequence[Series], log_axis: bool, curves: int) -> dict[str, Any]:
    values = [v for series in every for v in series.values() if math.isfinite(v)]
    least, most = min(values, default=0.0), max(values, default=0.0)
    wide = log_axis and least > 0 and most / least > _WIDE
    return {
        "xaxis": {
            "title": {"text": "iteration", "standoff": 4},
            "hoverformat": ",d",
            "tickformat": ",d",
        },
        "yaxis": {
            "title": {"text": unit},
            "type": "log" if wide else "linear",
            "hoverformat": ".6~g",
            "exponentformat": "none",
        },
        "hovermode": "x unified" if curves <= _TOGETHER else "closest",
        "showlegend": curves > 1,
    }


def _end_marks(runs: Sequence[Run]) -> dict[str, Any]:
    """A line where the masks of a run stop changing."""
    ends = {run.name: run.end_of_pruning() for run in runs}
    shapes, notes = [], []
    for name, end in ends.items():
        if end is None:
            continue
        of = f" of {chart_text(name)}" if len(runs) > 1 else ""
        shapes.append(
            {"type": "line", "x0": end, "x1": end, "y0": 0, "y1": 1, "xref": "x", "yref": "paper"}
        )
        notes.append(
            {
                "x": end,
                "y": 1,
                "xref": "x",
                "yref": "paper",
                "yanchor": "bottom",
                "text": f"end of pruning{of}",
                "showarrow": False,
            }
        )
    return {"shapes": shapes, "annotations": notes}


def _table(title: str, curves: _Curves) -> Table:
    columns = [(run, name, series) for run, own in curves for name, series in own.items()]
    several = len(curves) > 1
    header = ["iteration", *(f"{r.name}: {name}" if several else name for r, name, _ in columns)]
    iterations = sorted({iteration for _, _, series in columns for iteration in series})
    chosen = thinned(iterations)
    if len(chosen) < len(iterations):
        title = f"{title}: {len(chosen)} of {len(iterations)} iterations, evenly spread"
    rows = [
        [
            f"{iteration:,}",
            *(
                log.number(series[iteration]) if iteration in series else ""
                for _, _, series in columns
            ),
        ]
        for iteration in chosen
    ]
    return Table(title, header, rows)


def _range(traces: Sequence[dict[str, Any]]) -> str:
    values = [v for trace in traces for v in trace["y"] if math.isfinite(v)]
    if not values:
        return "without any number"
    return f"from {log.number(min(values))} to {log.number(max(values))}"
