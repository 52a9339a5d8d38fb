"""`dns train --report`: the page of a run, kept up to date while it trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from torch import Tensor

from caffe_dns import log
from caffe_dns.cli.pruned import plain_model
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.files import write_atomically
from caffe_dns.reports.page.render import check_page, prepare, render
from caffe_dns.reports.page.run import Entry, add_costs, sections
from caffe_dns.reports.run_log import LogReader
from caffe_dns.reports.run_net import RunNet
from caffe_dns.solver.observers import Display
from caffe_dns.solver.solver import Solver

#: At least this many seconds between two updates, and this many times as long as one takes.
_PAUSE = 30.0
_SHARE = 100


class LiveReport:
    """An observer that writes the page at some displays and tests, and at the end.

    It reads the log and the net, so that the page is the one that `dns report` makes of the run.
    Raises CaffeError if a library is missing, or a file of that name cannot be written.
    """

    def __init__(self, file: str) -> None:
        check_page(file)
        self.file = file
        self._log = LogReader()
        self._trainer: Solver | None = None
        self._next = 0.0
        self._costs_wanted = False
        log.listeners.append(self._hear)

    def watching(self, trainer: Solver) -> LiveReport:
        """Show the net of this solver from now on; returns itself."""
        prepare()
        self._trainer = trainer
        return self

    def finish(self) -> None:
        """The run has ended: the last page also gives the net's cost."""
        self._costs_wanted = True

    def displayed(self, display: Display) -> None:
        self._write_if_due()

    def tested(self, iteration: int, index: int, scores: Mapping[str, Tensor]) -> None:
        self._write_if_due()

    def close(self) -> None:
        """Write the page for the last time."""
        self._write()

    def forget(self) -> None:
        """Stop reading the log."""
        log.listeners.remove(self._hear)

    def _hear(self, lines: str) -> None:
        for line in lines.split("\n"):
            self._log.read(f"{line}\n")

    def _write_if_due(self) -> None:
        start = time.monotonic()
        if start >= self._next:
            self._write()
            end = time.monotonic()
            self._next = end + max(_PAUSE, _SHARE * (end - start))

    def _write(self) -> None:
        entry = Entry(self._log.result(Path(self.file).stem), self._net())
        if self._costs_wanted:
            add_costs(entry)
        write_atomically(self.file, render(entry.log.run.name, sections([entry])))

    def _net(self) -> RunNet | None:
        trainer = self._trainer
        if trainer is None:
            return None
        layers = trainer.surgeon.masked_layers if trainer.surgeon is not None else []
        thresholds = {layer.name: layer.threshold for layer in layers}
        return LiveNet(trainer, thresholds)


class LiveNet(RunNet):
    """The net of a solver that is training."""

    def __init__(self, trainer: Solver, thresholds: dict[str, float]) -> None:
        super().__init__(trainer.net, thresholds, trainer.net.param, [], trained=True)
        self._trainer = trainer

    def unmasked(self) -> UnmaskedModel:
        return plain_model(self._trainer)


def with_report(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a function of `page`, a LiveReport or None, gets the flag `report` instead.

    With several ranks, the first one writes the page.
    """

    @wraps(function)
    def run(*, report: str, **flags: Any) -> Any:
        ranks = flags.get("ranks")
        if not report or (ranks is not None and not ranks.is_root):
            return function(page=None, **flags)
        page = LiveReport(report)
        try:
            return function(page=page, **flags)
        finally:
            page.forget()

    return run
