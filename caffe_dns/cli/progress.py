"""A progress bar on the last line of a terminal; nothing at all if stderr is not a terminal."""

from __future__ import annotations

import io
import sys
from types import TracebackType
from typing import TYPE_CHECKING, TextIO, cast

from caffe_dns import log

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress:
    """A context that shows how many of `total` steps are done, below the lines of the log.

    `total` is None if unknown. Without `shown`, there is no bar.
    """

    def __init__(self, title: str, total: int | None, *, shown: bool = True) -> None:
        self._bar: RichProgress | None = None
        if shown and sys.stderr.isatty():
            self._bar = _new_bar()
            self._task = self._bar.add_task(title, total=total)

    def advance(self, done: int) -> None:
        """Show that `done` steps are done."""
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


class _Terminal(io.TextIOBase):
    """The terminal behind stderr. If it is gone, output is lost, but the run continues."""

    def __init__(self) -> None:
        self._stream = sys.stderr

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        log.put(text, self._stream)
        return len(text)


def _new_bar() -> RichProgress:
    from rich import progress  # here, because importing it takes long and logs do not need it
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
        console=Console(file=cast(TextIO, _Terminal())),
    )
