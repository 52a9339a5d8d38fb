"""What `dns time` prints beyond Caffe's log: a table of the layers, and the speed of the whole net.

Nothing is measured here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe_dns.net import Net
from caffe_dns.net.multiplications import batch_size
from caffe_dns.profile.layer_memory import LayerMemory
from caffe_dns.proto.caffe_pb2 import TRAIN
from caffe_dns.reports.summary import shortened

_HEADINGS = ("layer", "type", "forward ms", "backward ms", "parameters", "tops", "kept", "peak")
#: The widest name of a layer or type.
_WIDTH = 30
_GAP = "  "


@dataclass
class LayerCost:
    """What one layer takes: mean milliseconds of a pass of its own, and memory."""

    name: str
    type: str
    forward: float
    backward: float
    memory: LayerMemory


@dataclass
class NetCost:
    """What a pass of the whole net takes, in milliseconds, and the most memory meanwhile, in bytes.

    `peak` is what was allocated at once, and what the allocator held for it; None where neither is
    measured, on the CPU.
    """

    milliseconds: float
    peak: tuple[int, int] | None


def to_table(layers: Sequence[LayerCost]) -> list[str]:
    """A heading, the layers, the totals. What a layer does not have is left empty.

    There are peaks only where they were measured.
    """
    total = LayerMemory(
        sum(layer.memory.parameters for layer in layers),
        sum(layer.memory.tops for layer in layers),
        sum(layer.memory.kept for layer in layers),
    )
    forward, backward = (sum(getattr(c, way) for c in layers) for way in ("forward", "backward"))
    rows = [*layers, LayerCost("total", "", forward, backward, total)]
    measured = any(layer.memory.peak is not None for layer in layers)
    columns = len(_HEADINGS) if measured else len(_HEADINGS) - 1
    cells = [row[:columns] for row in (_HEADINGS, *map(_cells, rows))]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [_GAP.join(_aligned(row, widths)).rstrip() for row in cells]
    rule = "-" * max(map(len, lines))
    return [lines[0], rule, *lines[1:-1], rule, lines[-1]]


def to_lines(net: Net, layers: Sequence[LayerCost], whole: NetCost) -> list[str]:
    """The speed layer by layer and of whole passes, and the memory that these take."""
    batch = batch_size(net)
    alone = sum(layer.forward + layer.backward for layer in layers)
    train = net.phase == TRAIN
    kind = "training passes" if train else "scoring passes"
    parts = "data, forward and backward, no update" if train else "data and forward"
    if whole.peak is None:
        peak = "not measured on the CPU"
    else:
        allocated, held = map(bytes_text, whole.peak)
        peak = f"{allocated} allocated, {held} held for it by the allocator"
    return [
        f"Batch size: {batch}",
        f"Images per second, layer by layer: {_rate(batch, alone)} (forward and backward)",
        f"Images per second, {kind}: {_rate(batch, whole.milliseconds)} ({parts})",
        f"Peak memory, {kind}: {peak}",
    ]


def bytes_text(size: int) -> str:
    """A number of bytes with at most four digits: `512 B`, `1.5 KiB`, `33.2 MiB`."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1000 or unit == "GiB":
            break
    return f"{value:.1f} {unit}"


def _rate(batch: int, milliseconds: float) -> str:
    return f"{1000 * batch / milliseconds:.1f}, {milliseconds:.3f} ms each"


def _cells(layer: LayerCost) -> tuple[str, ...]:
    memory = layer.memory
    sizes = (memory.parameters, memory.tops, memory.kept, memory.peak)
    return (
        shortened(layer.name, _WIDTH),
        shortened(layer.type, _WIDTH),
        f"{layer.forward:.3f}",
        f"{layer.backward:.3f}",
        *(bytes_text(size) if size else "" for size in sizes),
    )


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Names to the left, numbers to the right."""
    return [
        cell.ljust(width) if column < 2 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
