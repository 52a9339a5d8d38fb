"""A progress bar at the bottom of a terminal; nothing at all when stderr is not one."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from caffe_dns import log


class Progress:
    """A context that shows how many of `total` steps are done, below the lines of the log.

    `total` is None where nobody knows it. Without `shown`, there is none on a terminal either.
    """

    def __init__(self, title: str, total: int | None, *, shown: bool = True) -> None:
        self._bar: RichProgress | None = None
        if shown and sys.stderr.isatty():
            console = Console(stderr=True)
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(title, total=total)

    def advance(self, done: int) -> None:
        """Show that `done` steps are behind us."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            log.set_sink(self._print)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            log.set_sink(None)
            self._bar.stop()

    def _print(self, text: str) -> None:
        assert self._bar is not None
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
