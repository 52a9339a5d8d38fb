#!/usr/bin/env python3
"""LeNet, batch 64, on the CPU: `dns train` from LMDB against a hand-written PyTorch loop.

    python tools/benchmarks/lenet_cpu.py [--rounds N] [--iterations N] [--load N] [--compile]

Each contestant is a process of its own. They train in turn, round after round, while the others
wait, so that all see the same machine. The hand-written loops have their data in memory already;
dns reads it from the database. Printed are iterations per second (median of the rounds) and the
ratio to the best hand-written loop, by the median of the ratios within each round. With --load,
each round has turns beside so many other processes as well, which compute all the time, and prints
what is left of the speed alone, by what is left of the cores if all threads get as much of them.
With --compile, there are the hand-written loops by torch.compile as well. Needs data/mnist (dns
get_mnist).
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import nn

from caffe_dns import log
from caffe_dns.cli.threads import wait_briefly, wake_soon
from caffe_dns.device.selection import training_device
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.solver import Solver
from tools.load import load

BATCH = 64
Step = Callable[[int], None]


class HandWritten:
    """LeNet as one would write it, with torch's SGD."""

    def __init__(self, memory_format: torch.memory_format, *, compiled: bool = False) -> None:
        self.format = memory_format
        self.net = nn.Sequential(
            nn.Conv2d(1, 20, 5),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(800, 500),
            nn.ReLU(),
            nn.Linear(500, 10),
        ).to(memory_format=memory_format)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4
        )
        self.scores = torch.compile(self.net) if compiled else self.net
        generator = torch.Generator().manual_seed(1)
        self.images = torch.rand(64 * BATCH, 1, 28, 28, generator=generator)
        self.labels = torch.randint(10, (64 * BATCH,), generator=generator)

    def step(self, iterations: int) -> None:
        for i in range(iterations):
            rows = slice(i % 64 * BATCH, (i % 64 + 1) * BATCH)
            images = self.images[rows].contiguous(memory_format=self.format)
            loss = F.cross_entropy(self.scores(images), self.labels[rows])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def by_hand(memory_format: torch.memory_format, *, compiled: bool = False) -> Step:
    return HandWritten(memory_format, compiled=compiled).step


def dns(definition: str, surgery: bool) -> Step:
    """The training loop of `dns train`, without tests, snapshots and log lines."""
    param = read_solver(definition).message
    for field in ("test_iter", "test_interval", "display", "snapshot", "solver_mode"):
        param.ClearField(field)
    return Solver(param, device=training_device("", param), surgery=surgery).step


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
#: The contestants: how each is called, and what makes its training loop.
BY_HAND: dict[str, Callable[[], Step]] = {
    f"PyTorch by hand, {name}": partial(by_hand, memory_format)
    for name, memory_format in FORMATS.items()
}
COMPILED: dict[str, Callable[[], Step]] = {
    f"PyTorch by hand, {name}, compiled": partial(by_hand, memory_format, compiled=True)
    for name, memory_format in FORMATS.items()
}
OURS: dict[str, Callable[[], Step]] = {
    "dns train --no-surgery": partial(dns, "models/lenet/solver.prototxt", surgery=False),
    "dns train, surgery": partial(dns, "models/lenet/prune_solver.prototxt", surgery=True),
}


def serve(make: Callable[[], Step], pipe: Connection, *, ours: bool) -> None:
    """Train as many iterations as the pipe says, again and again; answer with the seconds."""
    log.set_quiet(True)
    if ours:
        wake_soon()
    step = make()
    while iterations := pipe.recv():
        start = time.perf_counter()
        step(iterations)
        pipe.send(time.perf_counter() - start)


def start(make: Callable[[], Step]) -> Connection:
    """Start a contestant's process; ours waits as `dns` does."""
    pipe, far_end = Pipe()
    before = dict(os.environ)
    ours = make in OURS.values()
    if ours:
        wait_briefly()
    target = partial(serve, make, far_end, ours=ours)
    get_context("spawn").Process(target=target, daemon=True).start()
    os.environ.clear()
    os.environ.update(before)
    return pipe


def measure(pipe: Connection, iterations: int) -> float:
    """Iterations per second."""
    pipe.send(iterations)
    seconds: float = pipe.recv()
    return iterations / seconds


def measure_all(pipes: dict[str, Connection], iterations: int) -> dict[str, float]:
    """A turn of each."""
    return {name: measure(pipe, iterations) for name, pipe in pipes.items()}


def report(heading: str, rounds: list[dict[str, float]], by_hand: Iterable[str]) -> None:
    """Print what all did in these rounds."""
    print(f"{heading:42}{'iter/s':>9}{'ratio to the best by hand':>28}")
    for name in rounds[0]:
        speed = statistics.median(run[name] for run in rounds)
        ratio = statistics.median(run[name] / max(run[e] for e in by_hand) for run in rounds)
        print(f"{name:42}{speed:9.1f}{ratio:28.2f}")


def report_load(
    alone: list[dict[str, float]], beside: list[dict[str, float]], count: int, by_hand: list[str]
) -> None:
    """Print what all did beside others, and how much of their share of the cores they made of it.

    With as many threads as cores, that share is the one of these threads in all that compute.
    """
    threads = torch.get_num_threads()
    report(f"beside {count}", beside, by_hand)
    print(f"{'of the speed alone':42}{'':9}{f'to {threads} of {threads + count}':>28}")
    for name in alone[0]:
        left = statistics.median(
            run[name] / idle[name] for run, idle in zip(beside, alone, strict=True)
        )
        print(f"{name:42}{left:9.2f}{left * (threads + count) / threads:28.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--iterations", type=int, default=100)
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if not Path("data/mnist/mnist_train_lmdb").is_dir():
        raise SystemExit("no MNIST in data/mnist; dns get_mnist brings it")
    others = {**BY_HAND, **(COMPILED if options.compile else {})}
    pipes = {name: start(make) for name, make in {**others, **OURS}.items()}
    measure_all(pipes, options.iterations // 2)
    alone, beside = [], []
    for _ in range(options.rounds):
        alone.append(measure_all(pipes, options.iterations))
        if options.load:
            with load(options.load):
                beside.append(measure_all(pipes, max(1, options.iterations // (1 + options.load))))
    for pipe in pipes.values():
        pipe.send(0)
    print(
        f"LeNet, batch {BATCH}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"{platform.machine()}; median of {options.rounds} rounds of {options.iterations}"
    )
    report("alone", alone, list(others))
    if beside:
        report_load(alone, beside, options.load, list(others))


if __name__ == "__main__":
    main()
