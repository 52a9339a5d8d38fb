"""The page of training runs: results, curves, nets, weights, and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.text import to_text
from caffe_dns.reports.curves import Run
from caffe_dns.reports.kept import count_kept
from caffe_dns.reports.page.costs import cost_table
from caffe_dns.reports.page.curves import curve_section
from caffe_dns.reports.page.graph import graph
from caffe_dns.reports.page.parts import Card, Cards, Code, Graph, Section, Table, Text
from caffe_dns.reports.page.weights import histogram_section, mask_section
from caffe_dns.reports.run_log import RunLog
from caffe_dns.reports.run_net import RunNet
from caffe_dns.reports.summary import summarize


@dataclass
class Entry:
    """A run on the page. `net` is None where there is none, and `trouble` says why."""

    log: RunLog
    net: RunNet | None = None
    trouble: str = ""
    #: What its net takes, before and after; it takes time to find out.
    costs: Table | None = None


def sections(entries: Sequence[Entry]) -> list[Section]:
    """All of the page."""
    logs = [entry.log for entry in entries]
    found = [_results(entries)]
    if not all(entry.log.run.is_empty() for entry in entries):
        found.append(curve_section([log.run for log in logs]))
    for entry in entries:
        found += _of_net(entry, f" of {entry.log.run.name}" if len(entries) > 1 else "")
    return [*(section for section in found if section.parts), _settings(logs)]


def add_costs(entry: Entry) -> None:
    """Find out what the run's net takes, which runs it, if it has weights."""
    if entry.net is not None and entry.net.trained:
        try:
            entry.costs = cost_table(entry.net.unmasked())
        except CaffeError as error:
            entry.trouble = f"What the net takes is not shown: {error}"


def _of_net(entry: Entry, of: str) -> list[Section]:
    net = entry.net
    if net is None:
        return [Section(f"Net{of}", [Text(entry.trouble)] if entry.trouble else [])]
    parts: list[Table | Text | Graph] = [graph(net.net, summarize(net.net), trained=net.trained)]
    if entry.costs is not None:
        parts.insert(0, entry.costs)
    if entry.trouble:
        parts.append(Text(entry.trouble))
    if not net.trained:
        return [Section(f"Net{of}", parts)]
    histograms, masks = histogram_section(net.net, net.thresholds), mask_section(net.net)
    return [
        Section(f"Net{of}", parts),
        Section(f"{histograms.title}{of}", histograms.parts),
        Section(f"{masks.title}{of}", masks.parts),
    ]


def _results(entries: Sequence[Entry]) -> Section:
    cards = [(entry.log.run.name, run_cards(entry)) for entry in entries]
    if len(entries) == 1:
        return Section("Results", [Cards(cards[0][1])])
    labels = list(dict.fromkeys(card.label for _, own in cards for card in own))
    rows = []
    for label in labels:
        by_run = [{card.label: card.value for card in own}.get(label, "") for _, own in cards]
        rows.append([label, *by_run])
    return Section("Results", [Table("Runs side by side", ["", *(n for n, _ in cards)], rows)])


def run_cards(entry: Entry) -> list[Card]:
    """The figures that are to be seen first."""
    run = entry.log.run
    cards = []
    for name, series in run.scores.items():
        first, last = min(series), max(series)
        before = f"{log.number(series[first])} at iteration {first:,}"
        cards.append(Card(name, log.number(series[last]), before if first < last else ""))
    for name, series in run.losses.items():
        cards.append(Card(name, log.number(series[max(series)])))
    cards += [*_kept_card(run), *_ratio_card(entry.net)]
    every = [s for curves in (run.losses, run.scores) for s in curves.values()]
    if every:
        last = max(iteration for series in every for iteration in series)
        took = entry.log.facts.get("took", "")
        cards.append(Card("iterations", f"{last:,}", f"in {took} (h:mm:ss)" if took else ""))
    return cards


def _kept_card(run: Run) -> list[Card]:
    """What pruning left of all masked layers together."""
    if not run.kept:
        return []
    kept = sum(series[max(series)] for series in run.kept.values())
    total = sum(run.masked.values())
    end = run.end_of_pruning()
    note = f"of {total:,} that have masks" + ("" if end is None else f"; the last at {end:,}")
    return [Card("masked parameters kept", f"{kept:,.0f}", note)]


def _ratio_card(net: RunNet | None) -> list[Card]:
    """How many times fewer parameters all of the net has."""
    if net is None or not net.trained:
        return []
    counts = count_kept(net.net)
    kept, total = sum(count.kept for count in counts), sum(count.total for count in counts)
    if not kept:
        return []
    return [Card("times fewer parameters", f"{total / kept:.1f}", f"{kept:,} of {total:,}")]


def _differences(runs: Sequence[RunLog]) -> list[list[str]]:
    """The fields that not all solvers have alike: name, then what each says."""
    solvers = [_fields(entry.solver or SolverParameter()) for entry in runs]
    rows = [
        [field.name, *(solver.get(field.name, "") for solver in solvers)]
        for field in SolverParameter.DESCRIPTOR.fields
    ]
    return [row for row in rows if len(set(row[1:])) > 1]


def _fields(solver: SolverParameter) -> dict[str, str]:
    """What a solver says, field by field, each on one line; without whole nets."""
    texts = {}
    for field, value in solver.ListFields():
        if field.message_type is not NetParameter.DESCRIPTOR:
            alone = SolverParameter(**{field.name: value})
            texts[field.name] = " ".join(to_text(alone).replace(f"{field.name}: ", "").split())
    return texts


def _settings(runs: Sequence[RunLog]) -> Section:
    titles = list(dict.fromkeys(title for entry in runs for title in entry.facts))
    rows = [[title, *(entry.facts.get(title, "") for entry in runs)] for title in titles]
    header = ["", *(entry.run.name for entry in runs)]
    parts: list[Table | Code] = [Table("How it was run", header, rows, words=True)] if rows else []
    if differences := _differences(runs):
        parts.append(Table("Where the solvers differ", header, differences, words=True))
    for entry in runs:
        of = f" of {entry.run.name}" if len(runs) > 1 else ""
        if entry.solver_text:
            parts.append(Code(f"Solver{of}", entry.solver_text))
        if entry.net is not None:
            parts.append(Code(f"Net{of}", to_text(entry.net)))
    return Section("Settings", parts)
