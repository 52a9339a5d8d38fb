"""Runs `dns` as several processes, with torchrun's variables in their environment.

As a program, it is `dns` itself, which leaves all blobs of its rank in `rank0.npz`, `rank1.npz`.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from caffe_dns.cli.main import main
from caffe_dns.solver.solver import Solver

#: Between 127.0.0.1 and itself there is always a way, whatever this machine is called.
LOCAL = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "MASTER_ADDR": "127.0.0.1",
}


class Ranks:
    """Two ranks of one command in `folder`, and what they say."""

    size = 2

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = [self._start(rank, port, arguments) for rank in range(self.size)]

    def _start(self, rank: int, port: int, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.size, "MASTER_PORT": port}
        with self._log(rank).open("w") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.parallel.harness", *arguments],
                cwd=self.folder,
                env={**os.environ, **LOCAL, **{name: str(n) for name, n in numbers.items()}},
                stderr=log,
            )

    def _log(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.log"

    def said(self, rank: int) -> str:
        """What a rank has written to stderr."""
        return self._log(rank).read_text()

    def wait(self, seconds: float = 100) -> list[int]:
        """Wait until all have ended; returns their exit codes."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(end - time.monotonic(), 0)) for process in self.processes]
        finally:
            self.kill()

    def wait_for(self, condition: Callable[[str], object], seconds: float = 60) -> str:
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
        """All blobs of a rank at its end."""
        with np.load(self.folder / f"rank{rank}.npz") as arrays:
            return dict(arrays)

    def complaints(self) -> list[str]:
        """Lines that are neither of the log nor of a definition in it, of all ranks."""
        lines = "".join(self.said(rank) for rank in range(self.size)).splitlines()
        return [line for line in lines if re.match(r"dns: |Traceback|\w*Error|\[|W\d{4} ", line)]


def train(folder: Path, *flags: str) -> Ranks:
    """Train to the end of solver.prototxt on two ranks, which has to go well."""
    ranks = Ranks(folder, "train", "--solver", "solver.prototxt", *flags)
    assert ranks.wait() == [0, 0], ranks.said(0)[-2000:] + ranks.said(1)[-2000:]
    assert not ranks.complaints()
    assert not ranks.said(1)
    return ranks


def _leave_blobs(solver: Solver) -> None:
    arrays = {
        f"{name}/{index}": blob.detach().cpu().numpy()
        for name, blobs in solver.net.params.items()
        for index, blob in enumerate(blobs)
    }
    np.savez(f"rank{os.environ['RANK']}.npz", **arrays)  # type: ignore[arg-type]


if __name__ == "__main__":
    close = Solver.close

    def leave_blobs_and_close(self: Solver) -> None:
        _leave_blobs(self)
        close(self)

    Solver.close = leave_blobs_and_close  # type: ignore[method-assign]
    main()
