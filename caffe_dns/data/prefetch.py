"""Reads ahead in a thread of its own, into a queue of bounded length.

The caller gives a function that makes the next item. An error in it is raised by `get`, after the
items made before it. Nothing outlives `close`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from caffe_dns.errors import CaffeError, shortage

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Calls `produce` repeatedly until `depth` items are waiting."""

    def __init__(self, produce: Callable[[], Item], depth: int, name: str) -> None:
        self._produce = produce
        self._depth = max(depth, 1)
        self._items: deque[Item] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        # A daemon, so that a program that forgets to close it can still end.
        self._thread = threading.Thread(target=self._run, name=f"read {name}", daemon=True)
        self._thread.start()

    def get(self) -> Item:
        """Wait for the next item. Raises what `produce` raised."""
        with self._changed:
            while not (self._items or self._error or self._closed):
                self._changed.wait()
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                # Errors that are reported in one line, whichever thread raises them.
                if isinstance(self._error, CaffeError) or shortage(self._error):
                    raise self._error
                raise RuntimeError("reading ahead failed") from self._error
            raise ValueError("the prefetcher is closed")

    def close(self) -> None:
        """Stop the thread and wait for its end; drops the remaining items."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._items.clear()

    def _run(self) -> None:
        try:
            while self._wait_for_room():
                item = self._produce()
                with self._changed:
                    self._items.append(item)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _wait_for_room(self) -> bool:
        """True when the next item may be made, False when the thread should stop."""
        with self._changed:
            while len(self._items) >= self._depth and not self._closed:
                self._changed.wait()
            return not self._closed
