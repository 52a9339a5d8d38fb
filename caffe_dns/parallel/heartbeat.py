"""A thread that notices when another rank has died.

Each rank increments a number in the store that all of them reach. When one number stands still for
too long, when a rank has failed, or when the store is gone, this process ends at once, whatever its
main thread is waiting for. What the ranks compute together is not known here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist

from caffe_dns import log

#: Seconds between two beats, and how many missed beats make a rank count as dead.
BEAT = 2.0
_MOST_MISSED = 9
LONGEST_SILENCE = BEAT * _MOST_MISSED
#: How many ranks after its own each rank watches: as many as a host has, so that some rank watches
#: the first of a host that is gone. All to all is too much for the store from some hundred on.
_HEARD = 16
#: How long the store outlives a dead rank: the others check it at every beat.
_SHORT_PATIENCE = 3 * BEAT
#: Prefix of the keys in the store, and the key that says that the user has been told what failed.
PREFIX, TOLD = "dns", "told"


class Heartbeat:
    """The heartbeat of one rank, until `stop`.

    The store is at `address`:`port`, kept by rank 0 or by the program that started the ranks.
    """

    def __init__(
        self, rank: int, size: int, address: str, port: int, *, rank_0_keeps: bool
    ) -> None:
        self._rank = rank
        self._address = f"{address}:{port}"
        self._rank_0_keeps = rank_0_keeps
        self._size = size
        # A separate connection: others may be waiting for an answer on theirs.
        connection = dist.TCPStore(
            address,
            port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=LONGEST_SILENCE),
        )
        self._store = dist.PrefixStore(PREFIX, connection)
        others = range(rank + 1, rank + 1 + min(size - 1, _HEARD))
        self._heard = dict.fromkeys((other % size for other in others), 0)
        # Counted, not timed: a process that was stopped for a while has not missed beats.
        self._missed = dict.fromkeys(self._heard, 0)
        #: Where each rank runs, once that is known; for messages.
        self.places = [""] * size
        self._stopped = threading.Event()
        self._beat()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def claim(self, *, told: bool) -> bool:
        """Report that this rank fails; False if another one has failed before.

        `told` says that this rank tells the user what is wrong.
        """
        try:
            first = int(self._store.add("failed", 1)) == 1
            if first and told:
                self._store.set(TOLD, "1")
        except RuntimeError:  # the store is gone, and its keeper
            return True
        return first

    def stop(self) -> None:
        """Stop the heartbeat."""
        self._stopped.set()

    def leave(self, patience: float) -> None:
        """Report that this rank ends, and let all others read the store before its keeper ends.

        Does not wait for silent ranks, nor more than `patience` seconds for the others.
        """
        with suppress(RuntimeError):
            self._store.add("left", 1)
            until = time.monotonic() + patience
            while self._rank == 0 and self._rank_0_keeps and time.monotonic() < until:
                silent = sum(missed > _MOST_MISSED // 2 for missed in self._missed.values())
                if self._store.add("left", 0) >= self._size - silent:
                    return
                time.sleep(BEAT / 20)

    def _beat(self) -> None:
        self._store.add(f"beat/{self._rank}", 1)

    def _run(self) -> None:
        while not self._stopped.wait(BEAT):
            try:
                self._beat()
                self._listen()
            except RuntimeError:
                # Its keeper may have told this rank to stop, and ended.
                if not self._stopped.is_set():
                    self._end(self._lost())

    def _listen(self) -> None:
        if self._store.add("failed", 0):
            self._end(None)
        for rank, heard in self._heard.items():
            self._heard[rank] = int(self._store.add(f"beat/{rank}", 0))
            self._missed[rank] = 0 if self._heard[rank] != heard else self._missed[rank] + 1
            if self._missed[rank] > _MOST_MISSED:
                self._end(f"{self._name(rank)} is gone, so all ranks end")

    def _lost(self) -> str:
        keeper = self._name(0) if self._rank_0_keeps else "what started the ranks"
        return f"{keeper} is gone from {self._address}, so all ranks end"

    def _name(self, rank: int) -> str:
        return f"rank {rank} ({self.places[rank]})" if self.places[rank] else f"rank {rank}"

    def _end(self, message: str | None) -> None:
        """End this process. Only the first of several ranks prints the message."""
        if self._stopped.is_set():
            return
        if message is not None and self.claim(told=True):
            log.set_sink(None)
            log.say(f"dns: {message}")
        else:
            # The first to end prints: the end of a rank may end all others.
            time.sleep(BEAT)
        self.leave(_SHORT_PATIENCE)
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(1)
