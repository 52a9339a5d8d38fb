"""What a net consists of, layer by layer: shapes, parameters and multiplications.

Multiplications are those of convolutions and inner products for one item of the batch; for a pruned
net, also those by a weight that is not zero.
"""

from __future__ import annotations

from dataclasses import dataclass

from caffe_dns.layers.base import Layer, Shape
from caffe_dns.net import Net
from caffe_dns.net.multiplications import batch_size, uses
from caffe_dns.reports.kept import count_kept, effective_blob
from caffe_dns.surgery.layer_count import LayerCount


@dataclass(frozen=True)
class LayerSummary:
    """One layer. `macs` are multiply-accumulates, `macs_kept` those that pruning left."""

    name: str
    type: str
    shapes: list[Shape]
    parameters: int
    kept: int
    macs: int
    macs_kept: int


def summarize(net: Net) -> list[LayerSummary]:
    """The layers in the net's order, without the Splits it put in; shared blobs count once."""
    shapes: dict[str, Shape] = {}
    batch = batch_size(net)
    counts = {count.name: count for count in count_kept(net)}
    rows = []
    for step in net.steps:
        bottoms = [shapes[blob] for blob in step.bottoms]
        tops = [tuple(shape) for shape in step.layer.reshape(bottoms)]
        shapes.update(zip(step.tops, tops, strict=True))
        layer = step.layer
        if layer.type != "Split":
            count = counts.get(layer.name, LayerCount(layer.name, 0, 0))
            macs, macs_kept = _macs(layer, bottoms, tops, batch)
            rows.append(
                LayerSummary(layer.name, layer.type, tops, count.total, count.kept, macs, macs_kept)
            )
    return rows


def _macs(layer: Layer, bottoms: list[Shape], tops: list[Shape], batch: int) -> tuple[int, int]:
    """The multiply-accumulates of one item, and those with weights that are not zero."""
    often = uses(layer, bottoms, tops)
    if not often:
        return 0, 0
    weight = effective_blob(layer, 0)
    return weight.numel() * often // batch, int(weight.count_nonzero()) * often // batch


# Printing ---------------------------------------------------------------------------------------

_HEADINGS = ("layer", "type", "output", "parameters", "kept", "MACs", "MACs kept")
#: The columns that say something only about trained weights.
_OF_WEIGHTS = (4, 6)
#: The widest line.
WIDTH = 100
_GAP = "  "


def to_table(rows: list[LayerSummary], *, trained: bool) -> list[str]:
    """Lines of at most 100 columns: a heading, the layers, the totals.

    What is kept stands there only for a net with trained weights.
    """
    total = LayerSummary(
        "total",
        "",
        [],
        sum(row.parameters for row in rows),
        sum(row.kept for row in rows),
        sum(row.macs for row in rows),
        sum(row.macs_kept for row in rows),
    )
    columns = [i for i in range(len(_HEADINGS)) if trained or i not in _OF_WEIGHTS]
    all_cells = [_HEADINGS, *map(_cells, rows), _cells(total)]
    cells = [[line[i] for i in columns] for line in all_cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    # Names give way first, then types, then shapes.
    for column, least in ((0, 12), (1, 12), (2, 12)):
        excess = sum(widths) + len(_GAP) * (len(widths) - 1) - WIDTH
        if excess > 0:
            widths[column] = max(least, widths[column] - excess)
    lines = [_line(line, widths) for line in cells]
    rule = "-" * len(max(lines, key=len))
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    if trained and total.kept < total.parameters:
        lines += ["", _remaining("parameters", total.kept, total.parameters)]
        if total.macs:
            lines.append(_remaining("MACs", total.macs_kept, total.macs))
    return lines


def _cells(row: LayerSummary) -> tuple[str, ...]:
    """What stands in the columns; what a layer does not have is left empty."""
    shape = " ".join("x".join(map(str, shape)) or "1" for shape in row.shapes[:1])
    if len(row.shapes) > 1:
        shape += f" +{len(row.shapes) - 1}"
    numbers = [f"{row.parameters:,}", f"{row.kept:,}"] if row.parameters else ["", ""]
    numbers += [f"{row.macs:,}", f"{row.macs_kept:,}"] if row.macs else ["", ""]
    return (row.name, row.type, shape, *numbers)


def _line(cells: list[str], widths: list[int]) -> str:
    texts = [shortened(cell, width) for cell, width in zip(cells, widths, strict=True)]
    aligned = [
        text.ljust(width) if column < 3 else text.rjust(width)
        for column, (text, width) in enumerate(zip(texts, widths, strict=True))
    ]
    return _GAP.join(aligned).rstrip()


def shortened(text: str, width: int) -> str:
    """The text with dots in its middle where it is too long; both ends tell layers apart."""
    if len(text) <= width:
        return text
    front = (width - 2) // 2
    return f"{text[:front]}..{text[len(text) - (width - 2 - front) :]}"


def _remaining(what: str, kept: int, total: int) -> str:
    ratio = f"{total / kept:.1f} times fewer" if kept else "nothing"
    return f"{kept:,} of {total:,} {what} are left: {100 * kept / total:.2f} %, {ratio}"
