"""The size and the time of a model before and after a change."""

from __future__ import annotations

from dataclasses import dataclass
from time import thread_time

import torch

from caffe_dns.errors import CaffeError
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.net import Net
from caffe_dns.net.multiplications import batch_size
from caffe_dns.reports.summary import summarize

#: Batches that are timed, in items.
BATCHES = (1, 64)
#: Passes of a measurement: at least so many, then more until they took so many seconds together.
LEAST_PASSES = 3
LEAST_TIME = 0.1


@dataclass(frozen=True)
class Cost:
    """What a model takes. `macs` and `macs_kept` are of one item, `times` in seconds by batch."""

    stored: int
    kept: int
    macs: int
    macs_kept: int
    #: The size of the .caffemodel.
    size: int
    times: dict[int, float]


def measure(model: UnmaskedModel, batches: tuple[int, ...] = BATCHES) -> Cost:
    """Count, and time passes on one core of the CPU for those batches that the net takes."""
    net = model.to_net()
    rows = summarize(net)
    return Cost(
        model.total,
        model.kept,
        sum(row.macs for row in rows),
        sum(row.macs_kept for row in rows),
        sum(map(len, model.to_pieces())),
        {batch: time for batch in batches if (time := _time(net, batch)) is not None},
    )


@torch.no_grad()
def _time(net: Net, batch: int) -> float | None:
    """Seconds of the fastest pass of a batch of zeros; None where the net does not take it.

    Those of this thread alone, which does all the work: others may want its core.
    """
    old = batch_size(net)
    shapes = {name: net.blob_shapes[name] for name in net.inputs}
    inputs = {
        name: torch.zeros((batch, *shape[1:]) if shape[:1] == (old,) else shape)
        for name, shape in shapes.items()
    }
    try:
        net.reshape({name: tuple(value.shape) for name, value in inputs.items()})
    except CaffeError:
        return None
    times: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        try:
            net(inputs)
        except CaffeError:
            return None  # what judges a detector's boxes wants objects, which zeros are not
        while sum(times) < LEAST_TIME or len(times) < LEAST_PASSES:
            start = thread_time()
            net(inputs)
            times.append(thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    net.reshape(shapes)
    return min(times)


def comparison(before: Cost, after: Cost) -> list[str]:
    """A table with a row for each number, and how many times smaller it became."""
    rows = [
        _row("numbers stored", before.stored, after.stored),
        _row("of them not zero", before.kept, after.kept),
        _row("MACs of one item", before.macs, after.macs),
        _row("MACs not with zero", before.macs_kept, after.macs_kept),
        _row("bytes (.caffemodel)", before.size, after.size),
    ]
    for batch in before.times:
        if batch in after.times:
            times = 1e3 * before.times[batch], 1e3 * after.times[batch]
            rows.append(_row(f"ms, batch of {batch}", *times, ".3f"))
    return [f"{'':20} {'before':>15} {'after':>15}", *rows]


def _row(name: str, before: float, after: float, form: str = ",") -> str:
    ratio = f"{before / after:9.2f} times less" if after else ""
    return f"{name:20} {before:>15{form}} {after:>15{form}} {ratio}".rstrip()
