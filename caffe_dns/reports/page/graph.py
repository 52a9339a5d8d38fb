"""The graph of a net on a page: where its layers are placed, and the text of each.

Layers that work in place are shown with the layer whose blob they change. Rows follow the longest
path from an input; within a row, layers stand near what they read (Sugiyama's method, with a place
kept free for each edge that passes a row).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from caffe_dns.net import Net
from caffe_dns.reports.page.parts import Graph, Node, Table
from caffe_dns.reports.summary import LayerSummary, shortened

#: Sizes in pixels.
_WIDTH, _HEIGHT = 180, 88
_GAP, _ROW_GAP = 24, 34
#: A way past a row.
_PASS = 16
#: Letters that fit into a node.
_LETTERS = 24
#: The columns of the table that say something of trained weights only.
_OF_WEIGHTS = (4, 5, 7)
#: How often the order within rows is mended, downwards and upwards.
_SWEEPS = 4


@dataclass
class _Layer:
    """A layer with those that work in place on what it makes."""

    row: LayerSummary
    inputs: list[int]
    in_place: list[str] = field(default_factory=list)


def graph(net: Net, rows: Sequence[LayerSummary], *, trained: bool) -> Graph:
    """The graph of a net whose layers are summed up in `rows`, and the same as a table.

    What pruning left is told of a trained net only.
    """
    layers = _layers(net, {row.name: row for row in rows})
    places, paths = _place([layer.inputs for layer in layers])
    nodes = [
        _node(layer, x, y, trained=trained) for layer, (x, y) in zip(layers, places, strict=True)
    ]
    width = max((node.x + _WIDTH for node in nodes), default=0)
    width = max([width, *(point[0] for path in paths for point in path)])
    height = max((node.y + _HEIGHT for node in nodes), default=0)
    edges = [_curve(path) for path in paths]
    return Graph(
        "Layers", width + 2, height + 2, _WIDTH, _HEIGHT, nodes, edges, _table(rows, trained)
    )


def _layers(net: Net, rows: Mapping[str, LayerSummary]) -> list[_Layer]:
    layers: list[_Layer] = []
    makers: dict[str, int] = {}
    for step in net.steps:
        inputs = list(dict.fromkeys(makers[blob] for blob in step.bottoms))
        if step.layer.type == "Split":
            makers.update(dict.fromkeys(step.tops, inputs[0]))
        elif step.tops == step.bottoms and len(inputs) == 1:
            layers[inputs[0]].in_place.append(step.layer.type)
        else:
            makers.update(dict.fromkeys(step.tops, len(layers)))
            layers.append(_Layer(rows[step.layer.name], inputs))
    return layers


def _node(layer: _Layer, x: float, y: float, *, trained: bool) -> Node:
    row = layer.row
    shape = " ".join("x".join(map(str, shape)) or "1" for shape in row.shapes[:2])
    kind = ", ".join([row.type, *layer.in_place])
    parameters = macs = ""
    kept = None
    if row.parameters:
        parameters = f"{row.parameters:,} parameters"
        if trained:
            kept = row.kept / row.parameters
            parameters = f"{row.kept:,} of {row.parameters:,}"
    if row.macs:
        macs = f"{row.macs_kept if trained else row.macs:,} MACs"
    says = [row.name, kind, f"output {shape}", parameters + (" kept" if kept is not None else "")]
    if row.macs:
        says.append(f"{row.macs:,} multiply-accumulates" + (f", {macs} left" if trained else ""))
    lines = [shortened(kind, _LETTERS + 2), shortened(shape, _LETTERS + 2), parameters, macs]
    return Node(
        x,
        y,
        shortened(row.name, _LETTERS),
        [line for line in lines if line],
        ", ".join(part for part in says if part.strip()),
        "weighted" if row.macs else "other",
        kept,
    )


def _table(rows: Sequence[LayerSummary], trained: bool) -> Table:
    header = ("layer", "type", "output", "parameters", "kept", "sparsity", "MACs", "MACs left")
    columns = [i for i in range(len(header)) if trained or i not in _OF_WEIGHTS]
    cells = [
        [
            row.name,
            row.type,
            " ".join("x".join(map(str, shape)) or "1" for shape in row.shapes),
            *([f"{row.parameters:,}", f"{row.kept:,}"] if row.parameters else ["", ""]),
            f"{100 * (1 - row.kept / row.parameters):.2f} %" if row.parameters else "",
            *([f"{row.macs:,}", f"{row.macs_kept:,}"] if row.macs else ["", ""]),
        ]
        for row in rows
    ]
    sums = [
        sum(getattr(row, n) for row in rows) for n in ("parameters", "kept", "macs", "macs_kept")
    ]
    sparsity = f"{100 * (1 - sums[1] / sums[0]):.2f} %" if sums[0] else ""
    total = [
        "total",
        "",
        "",
        f"{sums[0]:,}",
        f"{sums[1]:,}",
        sparsity,
        f"{sums[2]:,}",
        f"{sums[3]:,}",
    ]
    title = "Layers, their outputs, parameters and MACs of one item"
    chosen = [[line[i] for i in columns] for line in (header, *cells, total)]
    return Table(title, chosen[0], chosen[1:])


# Layout -----------------------------------------------------------------------------------------

_Point = tuple[float, float]


def _place(inputs: Sequence[Sequence[int]]) -> tuple[list[_Point], list[list[_Point]]]:
    """For nodes that stand behind all they read: the upper left corner of each, and the ways.

    A way is a list of points, from the bottom of what is read to the top of who reads.
    """
    rows = _rows(inputs)
    #: Beside the nodes, numbers from len(inputs) on stand for ways that pass a row.
    levels: dict[int, list[int]] = defaultdict(list)
    for node, row in enumerate(rows):
        levels[row].append(node)
    ways: list[list[int]] = []
    above: dict[int, list[int]] = defaultdict(list)
    count = len(inputs)
    for node, sources in enumerate(inputs):
        for source in sources:
            way = [source]
            for row in range(rows[source] + 1, rows[node]):
                levels[row].append(count)
                way.append(count)
                count += 1
            way.append(node)
            ways.append(way)
            for upper, lower in pairwise(way):
                above[lower].append(upper)
    centres = _centres(levels, above, len(inputs))
    tops = {row: row * (_HEIGHT + _ROW_GAP) for row in levels}
    row_of = {node: row for row, nodes in levels.items() for node in nodes}
    places = [(centres[node] - _WIDTH / 2, float(tops[rows[node]])) for node in range(len(inputs))]
    paths = []
    for way in ways:
        path = [(centres[way[0]], tops[row_of[way[0]]] + float(_HEIGHT))]
        for passed in way[1:-1]:
            top = float(tops[row_of[passed]])
            path += [(centres[passed], top), (centres[passed], top + _HEIGHT)]
        paths.append([*path, (centres[way[-1]], float(tops[row_of[way[-1]]]))])
    return places, paths


def _rows(inputs: Sequence[Sequence[int]]) -> list[int]:
    """The row of each node: one below the lowest that it reads."""
    rows: list[int] = []
    for sources in inputs:
        rows.append(max((rows[source] + 1 for source in sources), default=0))
    return rows


def _centres(
    levels: Mapping[int, list[int]], above: Mapping[int, list[int]], nodes: int
) -> dict[int, float]:
    """Where each node and each passing way stands from left to right."""
    below: dict[int, list[int]] = defaultdict(list)
    for lower, uppers in above.items():
        for upper in uppers:
            below[upper].append(lower)
    centres: dict[int, float] = {}
    for row in sorted(levels):
        _line_up(levels[row], nodes, centres)
    for sweep in range(_SWEEPS):
        near = below if sweep % 2 else above
        for row in sorted(levels, reverse=bool(sweep % 2)):
            entries = levels[row]
            wanted = {
                node: sum(centres[other] for other in near[node]) / len(near[node])
                if near.get(node)
                else centres[node]
                for node in entries
            }
            entries.sort(key=lambda node: wanted[node])
            _line_up(entries, nodes, centres)
    least = min((centres[node] - _WIDTH / 2 for node in range(nodes)), default=0.0)
    least = min([least, *centres.values()])
    return {node: centre - least + 1 for node, centre in centres.items()}


def _line_up(entries: Sequence[int], nodes: int, centres: dict[int, float]) -> None:
    """Put a row's entries side by side, around 0."""
    widths = [_WIDTH if node < nodes else _PASS for node in entries]
    at = -(sum(widths) + _GAP * (len(widths) - 1)) / 2
    for node, width in zip(entries, widths, strict=True):
        centres[node] = at + width / 2
        at += width + _GAP


def _curve(path: Sequence[_Point]) -> str:
    """The way as an SVG path, bent where it changes its column."""
    (x, y), *rest = path
    parts = [f"M{x:.0f} {y:.0f}"]
    for to_x, to_y in rest:
        middle = (y + to_y) / 2
        parts.append(f"C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}")
        x, y = to_x, to_y
    return "".join(parts)
