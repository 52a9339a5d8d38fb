"""Runs `dns` as several processes, with torchrun's variables in their environment.

Each leaves all blobs of its rank at its end in `rank0.npz`, `rank1.npz`.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from caffe_dns.cli.main import main
from caffe_dns.parallel import heartbeat
from caffe_dns.parallel import ranks as joined
from caffe_dns.solver.snapshot import gather_histories
from caffe_dns.solver.solver import Solver
from tests.processes import PATIENCE, Forked

#: Between 127.0.0.1 and itself there is always a way, whatever this machine is called.
LOCAL = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "MASTER_ADDR": "127.0.0.1",
}


class Ranks:
    """Ranks of one command in `folder`, and what they say.

    A rank that is silent for nine beats counts as dead. `function`, as `Forked` calls it, is what
    each does: the command, unless it is another.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        size: int = 2,
        beat: float = 1.0,
        function: str = "tests.parallel.harness:run_rank",
    ) -> None:
        self.folder = folder
        self.size = size
        self._beat = beat
        self._function = function
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [self._start(rank, port, arguments) for rank in range(self.size)]

    def _start(self, rank: int, port: int, arguments: Sequence[str]) -> Forked:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.size, "MASTER_PORT": port}
        environment = LOCAL | {name: str(number) for name, number in numbers.items()}
        words = [str(self._beat), *arguments]
        return Forked(self._function, words, self.folder, environment, self._log(rank))

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.log"

    def said(self, rank: int) -> str:
        """What a rank has written to stderr."""
        return self._log(rank).read_text()

    def wait(self, seconds: float = PATIENCE) -> list[int]:
        """Wait until all have ended; returns their exit codes."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(end - time.monotonic(), 0)) for process in self.processes]
        finally:
            self.kill()

    def wait_for(self, condition: Callable[[str], object], seconds: float = PATIENCE) -> str:
        """Wait until what rank 0 says meets a condition; returns it."""
        end = time.monotonic() + seconds
        while not condition(text := self.said(0)):
            assert all(process.poll() is None for process in self.processes), text[-1000:]
            assert time.monotonic() < end, text[-1000:]
            time.sleep(0.02)
        return text

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def blobs(self, rank: int) -> dict[str, np.ndarray]:
        """All blobs of a rank at its end, and the histories of its update rule."""
        with np.load(self.folder / f"rank{rank}.npz") as arrays:
            return dict(arrays)

    def complaint(self) -> str:
        """The one line that they have to end with."""
        lines = self.complaints()
        assert len(lines) == 1, lines
        return lines[0]

    def complaints(self) -> list[str]:
        """Lines that are neither of the log nor of a definition in it, of all ranks."""
        lines = "".join(self.said(rank) for rank in range(self.size)).splitlines()
        return [line for line in lines if re.match(r"dns: |Traceback|\w*Error|\[|W\d{4} ", line)]


def train(folder: Path, *flags: str, size: int = 2) -> Ranks:
    """Train to the end of solver.prototxt, which has to go well, and the same on all ranks."""
    command = ["train", "--solver", "solver.prototxt", "--precision", "fp32"]
    ranks = Ranks(folder, *command, *flags, size=size)
    assert ranks.wait() == [0] * size, "".join(ranks.said(r)[-2000:] for r in range(size))
    assert not ranks.complaints()
    for rank in range(1, size):
        assert not ranks.said(rank)
        assert_alike(ranks.blobs(rank), ranks.blobs(0))
    return ranks


def assert_alike(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """The same to the last bit."""
    assert mine.keys() == theirs.keys()
    for key, values in mine.items():
        np.testing.assert_array_equal(values, theirs[key], err_msg=key)


def arrays_of(solver: Solver) -> dict[str, np.ndarray]:
    """Copies of all blobs, and of the histories of the update rule."""
    arrays = {
        f"{name}/{index}": blob.detach().cpu().numpy().copy()
        for name, blobs in solver.net.params.items()
        for index, blob in enumerate(blobs)
    }
    histories = gather_histories(solver.rule, solver.net.learnable_params)
    return arrays | {f"history/{index}": values.copy() for index, values in enumerate(histories)}


def run_rank(words: list[str]) -> None:
    """`dns` as one of several; the first word is how many seconds are between two beats."""
    beat, *arguments = words
    factor = float(beat) / heartbeat.BEAT
    for module in (heartbeat, joined):
        for name in ("BEAT", "LONGEST_SILENCE", "_SHORT_PATIENCE"):
            if name in vars(module):
                vars(module)[name] *= factor
    close = Solver.close

    def leave_blobs_and_close(self: Solver) -> None:
        np.savez(f"rank{os.environ['RANK']}.npz", **arrays_of(self))  # type: ignore[arg-type]
        close(self)

    Solver.close = leave_blobs_and_close  # type: ignore[method-assign]
    main(arguments)
