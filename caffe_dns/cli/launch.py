"""Starts one process for each GPU that `-gpu` names, and sets up a process that is one of several.

The processes run this same command with torchrun's environment variables; torchrun itself can start
them as well, on several hosts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from types import FrameType
from typing import Any

import torch.distributed as dist

from caffe_dns import interrupt, log
from caffe_dns.parallel.heartbeat import PREFIX, TOLD
from caffe_dns.parallel.ranks import JoinedRanks
from caffe_dns.parallel.world import STORE_IS_KEPT, find_world

#: Seconds between checks whether a rank has ended.
_LOOK = 0.1
_HOST = "127.0.0.1"
#: The signals that a run handles.
_SIGNALS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)


def as_rank(function: Callable[..., Any]) -> Callable[..., Any]:
    """Run a command as one of several ranks if the environment says so.

    The command gets them as `ranks`, None for a single process. One rank reports any failure.
    """

    @wraps(function)
    def run(**flags: Any) -> Any:
        world = find_world()
        with nullcontext() if world is None else JoinedRanks(world) as ranks:
            return function(ranks=ranks, **flags)

    return run


def launch(arguments: Sequence[str], gpus: Sequence[int]) -> int:
    """Run `dns` with these arguments on each GPU, until all ranks have ended or one has failed.

    Returns the exit code. When a rank dies, the others are ended and a line on stderr names it.
    """
    store = dist.TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
    ranks: list[subprocess.Popen[bytes]] = []
    with _signals_to(ranks):
        try:
            with _blocked_signals():
                for rank in range(len(gpus)):
                    environment = _environment(rank, len(gpus), store.port)
                    # In sessions of their own: Ctrl-C reaches rank 0 only through this process.
                    ranks.append(_start(arguments, environment))
            _forward_noted(ranks)
            failed = _wait(ranks)
        finally:
            for process in ranks:
                process.kill()
            for process in ranks:
                process.wait()
    if failed is None:
        return max(process.returncode for process in ranks)
    code = ranks[failed].returncode
    if sys.stderr.isatty():
        from rich.console import Console

        Console(stderr=True).show_cursor()  # rank 0 had no time to remove its progress bar
    if (number := -code if code < 0 else code - 128) in _SIGNALS:
        return 128 + number
    if not dist.PrefixStore(PREFIX, store).check([TOLD]):
        log.say(f"dns: rank {failed} (GPU {gpus[failed]}) {_end_of(code)}, so all ranks end")
    return code if code > 0 else 1


def _start(arguments: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "caffe_dns", *arguments]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        **os.environ,
        # A rank imports what this process has imported, not modules in the current folder.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONSAFEPATH": "1",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
        STORE_IS_KEPT: "True",
    }


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Wait until all have succeeded or one has failed; returns which one."""
    while True:
        codes = [process.poll() for process in ranks]
        for rank, code in enumerate(codes):
            if code and code != log.LOST_OUTPUT:
                return rank
        if None not in codes:
            return None
        time.sleep(_LOOK)


@contextmanager
def _signals_to(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Pass signals on to rank 0, which tells the others; Ctrl-Z stops all until this continues."""

    def forward(number: int, frame: FrameType | None) -> None:
        if ranks:
            ranks[0].send_signal(number)
        else:
            # A thread whose signals are not blocked has received it. Rank 0 may be running already.
            interrupt.noted.append(number)

    def stop_together(number: int, frame: FrameType | None) -> None:
        # Ranks that continued without this process would miss the store, which is here, and end.
        for process in ranks:
            process.send_signal(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)  # until this process is continued
        for process in ranks:
            process.send_signal(signal.SIGCONT)

    handlers = {**dict.fromkeys(_SIGNALS, forward), signal.SIGTSTP: stop_together}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Block signals: here until all ranks have started, and in a rank until it handles them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forward_noted(ranks: Sequence[subprocess.Popen[bytes]]) -> None:
    for number in interrupt.noted:
        ranks[0].send_signal(number)
    interrupt.noted.clear()


def _end_of(code: int) -> str:
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
