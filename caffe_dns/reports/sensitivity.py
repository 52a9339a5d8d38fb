"""The results of a sensitivity study: as text, CSV, a picture and a net definition.

The figures come from `surgery.sensitivity`; nothing is measured here. Its page is in
`page.sensitivity`, and `sensitivity_files` writes all of it.
"""

from __future__ import annotations

import csv
import io
import math
from typing import TYPE_CHECKING

from caffe_dns import log
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.proto.text import to_text
from caffe_dns.reports import charts
from caffe_dns.surgery.sensitivity import SHARES, Curve, Objective, Point, Proposal, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SETTINGS = {
    "Convolution": "convolution_param",
    "Deconvolution": "convolution_param",
    "DepthwiseConvolution": "convolution_param",
    "ConvolutionDepthwise": "convolution_param",
    "InnerProduct": "inner_product_param",
    "CConvolution": "cconvolution_param",
    "CInnerProduct": "cinner_product_param",
}
_OFFICIAL = ("CConvolution", "CInnerProduct")
#: Sparsities that the picture's axis names; it gives each halving of what is left the same room.
TICKS = (0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


# Text and CSV -----------------------------------------------------------------------------------


def to_text_table(study: Study, proposal: Proposal) -> str:
    """The scores by layer and share, then the proposal."""
    header, rows = score_rows(study)
    text = [headline(study), "", *_align([header, *rows]), "", proposal_line(study, proposal), ""]
    return "\n".join([*text, *_align(proposal_rows(study, proposal))]) + "\n"


def to_csv(study: Study) -> bytes:
    """A row for each point; the last column is called after what the net is scored by."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ("layer", "setting", "value", "sparsity", "pruned", "weights", study.objective.name)
    )
    for curve in study.curves:
        whole = (curve.layer, curve.setting, "", 0, 0, curve.total, f"{study.dense:.6g}")
        writer.writerow(whole)
        for p in curve.points:
            sparsity, value = f"{curve.sparsity(p):.6g}", f"{p.setting:.6g}"
            score = f"{p.score:.6g}"
            writer.writerow(
                (curve.layer, curve.setting, value, sparsity, p.pruned, curve.total, score)
            )
    return text.getvalue().encode()


def headline(study: Study) -> str:
    """What the table of scores is of."""
    score = score_text(study.objective, study.dense)
    return (
        f"{study.objective.name} = {score} over {study.batches} batches, nothing pruned; "
        "below, with one layer pruned by so much:"
    )


def score_rows(study: Study) -> tuple[list[str], list[list[str]]]:
    """The scores by layer and share: a heading, and the rows."""
    header = ["layer", "weights", *(f"{100 * share:g} %" for share in SHARES)]
    rows = []
    for curve in study.curves:
        by_share = {p.share: score_text(study.objective, p.score) for p in curve.points}
        cells = [by_share.get(share, "") for share in SHARES]
        rows.append([curve.layer, str(curve.total), *cells])
    return header, rows


def proposal_line(study: Study, proposal: Proposal) -> str:
    """What the proposal comes to."""
    kept, total = _count(study, proposal)
    name = study.objective.name
    limit = f"{100 * proposal.limit:g} % of the" if study.objective.is_loss else proposal.limit
    smaller = f"{total / kept:.1f} times fewer weights" if kept else "no weights left"
    score = score_text(study.objective, proposal.score)
    return (
        f"Proposed for at most {limit} {name} lost before training: all together "
        f"{name} = {score}, {smaller}"
    )


def proposal_rows(study: Study, proposal: Proposal) -> list[list[str]]:
    """For each layer: its name, the proposed setting, and the sparsity."""
    rows = []
    for curve in study.curves:
        point = proposal.points[curve.layer]
        if point is None:
            rows.append([curve.layer, "not pruned", ""])
        else:
            setting = f"{curve.setting} {log.number(point.setting)}"
            rows.append([curve.layer, setting, f"{100 * curve.sparsity(point):.1f} %"])
    return rows


def _count(study: Study, proposal: Proposal) -> tuple[int, int]:
    total = sum(curve.total for curve in study.curves)
    pruned = sum(point.pruned for point in proposal.points.values() if point is not None)
    return total - pruned, total


def score_text(objective: Objective, score: float) -> str:
    """A score with the digits that mean something."""
    return f"{score:.4g}" if objective.is_loss else f"{score:.4f}"


def _align(rows: list[list[str]]) -> list[str]:
    """Lines with columns of equal width, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


# Picture ----------------------------------------------------------------------------------------


def draw(study: Study, proposal: Proposal) -> Figure:
    """The score against sparsity, a line for each layer: all of it, and what matters, closer."""
    figure, (whole, close) = charts.new_figure(2, 3.4)
    for axes in (whole, close):
        palette = charts.colours(len(study.curves))
        for curve, colour in zip(study.curves, palette, strict=True):
            _draw_curve(axes, curve, study.dense, proposal.points[curve.layer], colour)
        axes.axhline(study.dense, color="#555555", linewidth=1, linestyle="--", zorder=1)
        axes.set_ylabel(study.objective.name)
    whole.set_title("One layer pruned, the others whole (dots: proposed for all together)")
    close.set_title("The same, closer")
    charts.add_legend(whole)
    _annotate(close, "nothing pruned", study.dense, "#555555")
    worst = limit_score(study, proposal.limit)
    close.axhline(worst, color="#b00000", linewidth=1, linestyle=":", zorder=1)
    _annotate(close, "allowed loss", worst, "#b00000")
    reach = abs(study.dense - worst) or abs(study.dense) / 100 or 1.0
    down, up = (1.0, 3.0) if study.objective.is_loss else (3.0, 1.0)
    close.set_ylim(study.dense - down * reach, study.dense + up * reach)
    close.set_xticks([place(tick) for tick in TICKS], [f"{100 * t:g} %" for t in TICKS])
    close.minorticks_off()
    close.set_xlabel("sparsity of the layer")
    return figure


def _annotate(axes: Axes, text: str, height: float, colour: str) -> None:
    """Say above the right end of a horizontal line, where few curves are, what it is."""
    axes.annotate(
        text,
        (0.995, height),
        xycoords=("axes fraction", "data"),
        color=colour,
        fontsize="small",
        horizontalalignment="right",
        verticalalignment="bottom",
    )


def _draw_curve(axes: Axes, curve: Curve, dense: float, point: Point | None, colour: str) -> None:
    places = [0.0, *(place(curve.sparsity(p)) for p in curve.points)]
    scores = [dense, *(p.score for p in curve.points)]
    label = charts.legend_label(curve.layer)
    axes.plot(places, scores, color=colour, label=label, marker=".", markersize=4)
    if point is not None:
        at = place(curve.sparsity(point))
        axes.plot([at], [point.score], color=colour, marker="o", markersize=8, linestyle="")


def place(sparsity: float) -> float:
    """Where a sparsity lies on the x axis; a layer without any weight lies at its end."""
    return -math.log10(max(1 - sparsity, 1e-3))


def limit_score(study: Study, limit: float) -> float:
    """The worst score that the proposal was allowed."""
    return study.dense * (1 + limit) if study.objective.is_loss else study.dense - limit


# Definition -------------------------------------------------------------------------------------


def to_definition(definition: NetParameter, study: Study, proposal: Proposal) -> str:
    """The net definition with the proposed settings; layers that were not measured stay.

    `definition` has the layers of all phases.
    """
    changed = NetParameter()
    changed.CopyFrom(definition)
    points = {
        name: proposal.points[curve.layer]
        for curve in study.curves
        for name in (curve.layer, *curve.sharers)
    }
    for layer in changed.layer:
        if layer.name in points and layer.type in _SETTINGS:
            _set(layer, points[layer.name])
    return f"# {proposal_line(study, proposal)}.\n{to_text(changed)}"


def _set(layer: LayerParameter, point: Point | None) -> None:
    settings = getattr(layer, _SETTINGS[layer.type])
    if layer.type in _OFFICIAL:
        if point is None:
            settings.iter_stop = 0  # so that the masks stay as they are filled
        else:
            settings.c_rate = point.setting
        return
    settings.sparsity_term = point is not None
    if point is not None:
        settings.threshold = point.setting
    else:
        # Without a mask, its `param {}` would be one too many.
        del layer.param[1 + settings.bias_term :]
