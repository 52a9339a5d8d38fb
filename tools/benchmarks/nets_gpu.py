#!/usr/bin/env python3
"""How fast nets of models/ train, and with how much memory: caffe_dns against plain PyTorch.

    python tools/benchmarks/nets_gpu.py [--nets NET ...] [--precisions P ...] [--rows ROW ...]
        [--compile [MODE ...]] [--at-once] ...

Images are on the GPU already. PyTorch trains the same layers, written by hand (`plain_nets`), with
fused SGD; in tf32 and bf16 in channels_last. Of eager or as a CUDA graph, with or without cuDNN's
benchmark, the fastest counts; with --compile, there is a row for torch.compile as well. That takes
minutes for each net; with --at-once, all nets are compiled at the same time, before the first is
timed, and have to fit the device together. Whoever tries out what is fastest for it does so alone.
The contestants train in turn, each alone, round after round. Printed are medians
of the rounds; ratios are to the first row, for the speed the median of the ratios within each
round. Memory is the most that tensors took at any time. Runs on a CPU as well, where nobody
captures and memory is not counted.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from caffe_dns.device.precision import PRECISIONS
from tools.benchmarks.contestants import Task, ours, theirs
from tools.benchmarks.plain_nets import NETS
from tools.benchmarks.processes import ContestantProcess, Figure, Make

PLAIN = "PyTorch"
#: The rows of a table, and who may stand for each: the fastest does.
ROWS: dict[str, dict[str, Make]] = {
    PLAIN: {"": theirs, "benchmark": partial(theirs, benchmark=True)},
    "dns train, surgery": {"": partial(ours, surgery=True)},
    "dns train --no-surgery": {"": partial(ours, surgery=False)},
}
COMPILED = "PyTorch, compiled"
TITLES = (PLAIN, COMPILED, *list(ROWS)[1:])
#: Modes of torch.compile; what captures by itself cannot be captured.
MODES = ("default", "max-autotune-no-cudagraphs")


#: Who may stand for a row, by their settings.
Candidates = dict[str, ContestantProcess]
#: When each of them has built its net.
Building = dict[str, "Future[None]"]


@dataclass(frozen=True)
class Entry:
    """Who stands for a row, and the way it trains."""

    process: ContestantProcess
    way: str
    title: str
    figure: Figure


def start_processes(
    device: str, modes: Sequence[str], titles: Sequence[str]
) -> dict[str, Candidates]:
    """A process for each candidate of these rows; `modes` are those of torch.compile."""
    makes = dict(ROWS)
    if modes:
        makes[COMPILED] = {mode: partial(theirs, benchmark=True, mode=mode) for mode in modes}
    if device == "cpu":  # without cuDNN
        makes[PLAIN] = {"": theirs}
    return {
        title: {settings: ContestantProcess(make) for settings, make in makes[title].items()}
        for title in titles
        if title in makes
    }


def fastest(candidates: Candidates, building: Building, seconds: float) -> Entry | str:
    """Who stands for a row, or why nobody does; all but the fastest leave."""
    ways: dict[tuple[str, str], Figure] = {}
    failed = ""
    for settings, process in candidates.items():
        try:
            building[settings].result()
            ways |= {(settings, way): found for way, found in process.enter(seconds).items()}
        except RuntimeError as error:
            failed = f"failed: {error}"
    if not ways:
        return failed
    settings, way = best = min(ways, key=lambda each: ways[each].milliseconds)
    for other, process in candidates.items():
        if other != settings:
            process.leave()
    return Entry(candidates[settings], way, ", ".join(filter(None, (way, settings))), ways[best])


def compete(
    entered: dict[str, Entry | str], task: Task, rounds: int, seconds: float
) -> dict[str, str]:
    """Let all rows train the task in turn; returns their lines for the table."""
    entries = {title: entry for title, entry in entered.items() if isinstance(entry, Entry)}
    runs = [
        {title: entry.process.turn(entry.way, seconds) for title, entry in entries.items()}
        for _ in range(rounds)
    ]
    lines = {title: line(title, entries, runs, task.batch) for title in entries}
    return {title: lines.get(title) or str(entry) for title, entry in entered.items()}


def line(
    title: str, entries: dict[str, Entry], runs: Sequence[dict[str, float]], batch: int
) -> str:
    entry = entries[title]
    milliseconds = statistics.median(run[title] for run in runs)
    text = f"{milliseconds:9.3f}{1000 * batch / milliseconds:11.0f}"
    text += f"{entry.figure.memory / (1 << 30):8.2f}"
    first = next(iter(entries))
    speed = statistics.median(run[first] / run[title] for run in runs)
    memory = entry.figure.memory / (entries[first].figure.memory or 1)
    text += f"{speed:8.2f}{memory:8.2f}"
    return f"{text}  {entry.title}"


def build(candidates: Candidates, task: Task) -> Building:
    return {settings: process.build(task) for settings, process in candidates.items()}


def run(tasks: Sequence[Task], options: argparse.Namespace) -> None:
    """Build all of these, then let the rows of each train it, and print its table."""
    modes = MODES[:1] if options.compile == [] else options.compile or ()
    fields = [start_processes(options.device, modes, options.rows) for _ in tasks]
    buildings = [
        {title: build(rows[title], task) for title in rows}
        for task, rows in zip(tasks, fields, strict=True)
    ]
    wait([end for building in buildings for row in building.values() for end in row.values()])
    for task, rows, building in zip(tasks, fields, buildings, strict=True):
        heading = f"{task.net}, batch {task.batch}, {task.precision}"
        print(f"{heading:32}{'ms':>9}{'images/s':>11}{'GiB':>8}{'speed':>8}{'memory':>8}")
        entered = {
            title: fastest(rows[title], building[title], options.seconds / 3) for title in rows
        }
        for title, text in compete(entered, task, options.rounds, options.seconds).items():
            print(f"  {title:30}{text}", flush=True)
        for candidates in rows.values():
            for process in candidates.values():
                process.close()


def device_name(device: str) -> str:
    if device == "cpu":
        return f"{platform.machine()}, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"


def parse_options() -> argparse.Namespace:
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=PRECISIONS if device != "cpu" else ("fp32",),
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each turn")
    parser.add_argument("--batch", type=int, help="instead of each net's own")
    parser.add_argument("--rows", nargs="+", choices=TITLES, default=TITLES)
    parser.add_argument(
        "--compile",
        nargs="*",
        choices=MODES,
        help="torch.compile as well, in these modes or else the first; takes long",
    )
    parser.add_argument(
        "--at-once", action="store_true", help="compile all nets first, at the same time"
    )
    options = parser.parse_args(namespace=argparse.Namespace(device=device))
    if options.rows == [COMPILED] and options.compile is None:
        parser.error(f"--rows '{COMPILED}' trains nobody without --compile")
    return options


def main() -> None:
    options = parse_options()
    tasks = [
        Task(name, precision, options.batch or NETS[name].batch, options.device)
        for name in options.nets
        for precision in options.precisions
    ]
    print(f"{device_name(options.device)}, torch {torch.__version__}")
    print(f"Medians of {options.rounds} rounds; speed and memory are ratios to the first row\n")
    for group in [tasks] if options.at_once else [[task] for task in tasks]:
        run(group, options)


if __name__ == "__main__":
    main()
