"""The size of a run's net before and after pruning, as a table of a page."""

from __future__ import annotations

from caffe_dns.export.compact import to_bytes
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import shrink
from caffe_dns.reports.comparison import BATCHES, Cost, measure
from caffe_dns.reports.page.parts import Table
from caffe_dns.reports.summary import summarize

#: Up to so many multiply-accumulates an item, a pass of the larger batches is timed, too.
_SMALL = 20_000_000


def cost_table(model: UnmaskedModel) -> Table:
    """Parameters, bytes, MACs and time: of the net, of what is kept of it, and of it shrunk."""
    small = shrink(model).model
    macs = sum(row.macs for row in summarize(model.to_net()))
    batches = BATCHES if macs <= _SMALL else BATCHES[:1]
    before, after = measure(model, batches), measure(small, batches)
    rows = [
        ["parameters", f"{before.stored:,}", f"{before.kept:,}", f"{after.stored:,}"],
        ["MACs of one item", f"{before.macs:,}", f"{before.macs_kept:,}", f"{after.macs:,}"],
        ["bytes of the file", f"{before.size:,}", f"{len(to_bytes(model)):,}", f"{after.size:,}"],
        *_times(before, after),
    ]
    header = ("", "before", "kept (.dnsz)", "shrunk (dns export --shrink)")
    return Table("Before and after pruning", header, rows)


def _times(before: Cost, after: Cost) -> list[list[str]]:
    return [
        [
            f"ms, batch of {batch}, one core",
            f"{1e3 * time:.3f}",
            "",
            f"{1e3 * after.times[batch]:.3f}",
        ]
        for batch, time in before.times.items()
        if batch in after.times
    ]
