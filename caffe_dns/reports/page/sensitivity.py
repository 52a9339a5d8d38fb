"""A sensitivity study as a page: the proposal, the curves, and the scores behind them."""

from __future__ import annotations

from typing import Any

from caffe_dns.reports.page.parts import Chart, Section, Table, Text, chart_text
from caffe_dns.reports.sensitivity import (
    TICKS,
    headline,
    limit_score,
    place,
    proposal_line,
    proposal_rows,
    score_rows,
    score_text,
)
from caffe_dns.surgery.sensitivity import Proposal, Study


def sections(study: Study, proposal: Proposal) -> list[Section]:
    """All of the page."""
    proposed = Table("Proposed", ("layer", "setting", "sparsity"), proposal_rows(study, proposal))
    return [
        Section("Proposal", [Text(proposal_line(study, proposal)), proposed]),
        Section("Layers", [Text(headline(study)), _chart(study, proposal)]),
    ]


def _chart(study: Study, proposal: Proposal) -> Chart:
    """The score against the sparsity of each layer; dots where the proposal is."""
    traces: list[dict[str, Any]] = []
    for number, curve in enumerate(study.curves):
        sparsities = [0.0, *map(curve.sparsity, curve.points)]
        chosen = proposal.points[curve.layer]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": chart_text(curve.layer),
                "colour": number,
                "x": [place(sparsity) for sparsity in sparsities],
                "y": [study.dense, *(point.score for point in curve.points)],
                "customdata": [100 * sparsity for sparsity in sparsities],
                "hovertemplate": "%{y:.4~g} at %{customdata:.1f} %",
                "marker": {"size": [5, *(13 if p is chosen else 5 for p in curve.points)]},
            }
        )
    worst, dense = limit_score(study, proposal.limit), study.dense
    marks = [(dense, "nothing pruned"), (worst, "allowed loss")]
    layout = {
        "xaxis": {
            "title": {"text": "sparsity of the layer", "standoff": 4},
            "tickvals": [place(tick) for tick in TICKS],
            "ticktext": [f"{100 * tick:g} %" for tick in TICKS],
        },
        "yaxis": {"title": {"text": chart_text(study.objective.name)}},
        "hovermode": "closest",
        "showlegend": True,
        "shapes": [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": score, "y1": score}
            for score, _ in marks
        ],
        "annotations": [
            {"xref": "paper", "x": 0, "xanchor": "left", "y": score, "text": text}
            | {"yanchor": "bottom", "showarrow": False}
            for score, text in marks
        ],
    }
    header, rows = score_rows(study)
    says = (
        f"The {study.objective.name} with one layer pruned and the others whole, "
        f"{len(traces)} layers; {score_text(study.objective, dense)} with nothing pruned."
    )
    title = "One layer pruned, the others whole (large dots: proposed for all together)"
    return Chart(title, says, traces, layout, Table(title, header, rows), len(traces))
