#!/usr/bin/env python3
"""Weak scaling: `dns train` with surgery on several GPUs of this machine against one of them.

    python tools/benchmarks/several_gpus.py [--gpus N ...] [--nets NET ...] [--precisions P ...]
                                            [--rounds N] [--seconds S]

Each GPU gets the whole batch, so that N of them should be N times as fast. Images come from fillers
that draw anew each time. One GPU and several take turns, round after round, each a process of its
own whose speed is the median of what its displays say, after the first few. Printed are medians of
the rounds, and of the shares of N times the speed of one GPU; stderr has each run's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from caffe_dns import log
from caffe_dns.device.precision import PRECISIONS
from tools.benchmarks.contestants import solver_definition
from tools.benchmarks.lenet_gpu import dns_train, write_run
from tools.benchmarks.nets_gpu import device_name
from tools.benchmarks.plain_nets import NETS

#: What each GPU trains, and about how many iterations of it a second takes.
SUBJECTS = {"alexnet_bn_dns": 100, "resnet50": 30, "lenet": 4000}


def write_solver(file: Path, net: str, batch: int, iterations: int) -> None:
    """The net's solver of models/ for so many iterations with surgery, on images from a filler."""
    write_run(file, solver_definition(net, batch, surgery=True), iterations)


def rate(definition: Path, precision: str, count: int) -> float:
    """Iterations per second with so many GPUs, which stderr tells at once: a run may be cut."""
    speed = dns_train(definition, precision, f"cuda:{','.join(map(str, range(count)))}")
    print(
        f"{definition.stem}, {precision}, GPUs {count}: {speed:.2f} iterations/s", file=sys.stderr
    )
    return speed


def report(net: str, definition: Path, batch: int, options: argparse.Namespace) -> None:
    """Print a row for each precision and number of GPUs."""
    counts = [1, *options.gpus]
    for precision in options.precisions:
        runs = [
            [rate(definition, precision, count) for count in counts] for _ in range(options.rounds)
        ]
        for place, count in enumerate(counts):
            speed = statistics.median(count * batch * run[place] for run in runs)
            share = statistics.median(run[place] / run[0] for run in runs)
            row = f"| {net} | {batch} | {precision} | {count} | {speed:,.0f} | {share:.3f} |"
            print(row, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    every = torch.cuda.device_count()
    parser.add_argument("--gpus", nargs="+", type=int, default=[every])
    parser.add_argument("--nets", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["tf32", "bf16"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6, help="of a run on one GPU, about")
    options = parser.parse_args()
    if max(options.gpus) > every or min(options.gpus) < 2:
        parser.error(f"--gpus: from 2 to the GPUs that are here, {every}")
    log.set_quiet(True)
    print(f"{every} times {device_name('cuda:0')}, torch {torch.__version__}")
    print("\n| | a GPU's batch | | GPUs | images/s | of N times one |")
    print("| --- | ---: | --- | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for net in options.nets:
            batch, file = NETS[net].batch, Path(folder) / f"{net}.prototxt"
            write_solver(file, net, batch, round(options.seconds * SUBJECTS[net]))
            report(net, file, batch, options)


if __name__ == "__main__":
    main()
