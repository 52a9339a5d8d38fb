#!/usr/bin/env python3
"""The whole of `dns train`, reading from LMDB, against loops whose data are on the GPU already.

    python tools/benchmarks/lenet_gpu.py [--parts lenet alexnet jpeg] [--precisions P ...]
                                         [--rounds N]

LeNet, batch 64: `dns train` against PyTorch by hand, eager and as a CUDA graph. AlexNet-BN, batch
256, from 256x256 raw images, and from JPEGs, decoded by processes and by the GPU: `dns train`
against the same run on its first batch alone, with as many displays; and against the training loop
without displays. Databases of random pixels, and of smooth JPEGs, are made in a temporary folder
and read round and round. `dns train` is a process of its own in each round; its speed is the median
of what its displays say, after the first few. Each round has the order of the last one turned
round. Printed are medians of the rounds, and of the ratios within each. Runs on a CPU as well.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from caffe_dns import log
from caffe_dns.device.precision import PRECISIONS
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import write_text
from caffe_dns.proto.upgrade import read_net, read_solver
from tools.benchmarks.contestants import MODELS, Task, ours, theirs
from tools.benchmarks.data_rate import make_images
from tools.benchmarks.nets_gpu import device_name
from tools.benchmarks.plain_nets import NETS
from tools.benchmarks.processes import ContestantProcess
from tools.benchmarks.records import make_database

#: Displays in a run of `dns train`, and how many of them do not count.
DISPLAYS, WARM_UP = 8, 3
LENET_SOLVERS = ("prune_solver", "guo_solver")
#: As many as MNIST has, so that the database is about as large.
LENET_RECORDS = 60000
LENET_SECONDS, ALEXNET_SECONDS = 0.5, 1.0
CONSTANT, HELD_DATA = "dns train, constant data", "tools.benchmarks.held_data"
#: Gives iterations per second.
Runner = Callable[[], float]


# dns train --------------------------------------------------------------------------------------


def write_definition(
    folder: Path,
    model: str,
    solver: str,
    database: Path,
    batch: int,
    iterations: int,
    data: str = "Data",
) -> Path:
    """A solver of models/ and its net as they are, but on this database, and for training alone.

    `data` is the type of the layers that read it.
    """
    param = read_solver(MODELS / model / f"{solver}.prototxt").message
    net = read_net(MODELS.parent / param.net).message
    for layer in net.layer:
        if layer.type == "Data":
            layer.type = data
            layer.data_param.source = str(database)
            layer.data_param.batch_size = batch
    for field in ("test_iter", "test_interval", "snapshot", "snapshot_prefix", "solver_mode"):
        param.ClearField(field)
    param.net = str(folder / f"{model}_{solver}_{data}_net.prototxt")
    write_text(param.net, net)
    file = folder / f"{model}_{solver}_{data}.prototxt"
    write_run(file, param, iterations)
    return file


def write_run(file: Path, param: SolverParameter, iterations: int) -> None:
    """Write the solver, for so many iterations with the displays that `dns_train` looks for."""
    param.max_iter = iterations
    param.display = max(1, iterations // DISPLAYS)
    param.snapshot_after_train = False
    write_text(file, param)


def dns_train(definition: Path, precision: str, device: str, *flags: str) -> float:
    """Run the command; the iterations per second that its log tells."""
    path = os.pathsep.join(filter(None, (str(MODELS.parent), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "caffe_dns", "train", "--solver", str(definition)]
    command += ["--precision", precision, *flags]
    if device != "cpu":
        command += ["-gpu", device.removeprefix("cuda:")]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.splitlines()[-1]}")
    rates = re.findall(r"Iteration \d+ \((\S+) iter/s", done.stderr)
    return statistics.median(float(rate) for rate in rates[WARM_UP:])


# Comparisons ------------------------------------------------------------------------------------


def report(
    heading: str, batch: int, runners: dict[str, Runner], references: list[str], rounds: int
) -> None:
    """Let all run in turn, round after round, and print how fast they were."""
    order = list(runners)
    runs = []
    for _ in range(rounds):
        runs.append({title: runners[title]() for title in order})
        order.reverse()
    columns = "".join(f"{f'to {name}':>28}" for name in references)
    print(f"{heading:34}{'iter/s':>9}{'images/s':>10}{columns}")
    for title in runners:
        rate = statistics.median(run[title] for run in runs)
        ratios = [statistics.median(run[title] / run[name] for run in runs) for name in references]
        cells = "".join(f"{ratio:28.3f}" for ratio in ratios)
        print(f"  {title:32}{rate:9.1f}{batch * rate:10.0f}{cells}", flush=True)


def turn(process: ContestantProcess, way: str, seconds: float) -> float:
    return 1000 / process.turn(way, seconds)


def report_lenet(folder: Path, options: argparse.Namespace) -> None:
    database = folder / "lenet_lmdb"
    batch = options.batch or NETS["lenet"].batch
    make_database(database, LENET_RECORDS, NETS["lenet"].image, NETS["lenet"].classes)
    write = partial(write_definition, folder, "lenet", database=database, batch=batch)
    pruning = {
        f"dns train, {solver}": write(solver=solver, iterations=options.lenet_iterations)
        for solver in LENET_SOLVERS
    }
    dense = write(solver="solver", iterations=options.lenet_iterations)
    process = ContestantProcess(theirs)
    for precision in options.precisions:
        process.build(Task("lenet", precision, batch, options.device)).result()
        ways = process.enter(LENET_SECONDS)
        runners: dict[str, Runner] = {
            f"PyTorch, {way}": partial(turn, process, way, LENET_SECONDS) for way in ways
        }
        references = list(runners)
        for title, definition in pruning.items():
            runners[title] = partial(dns_train, definition, precision, options.device)
        runners["dns train --no-surgery"] = partial(
            dns_train, dense, precision, options.device, "--no-surgery"
        )
        heading = f"LeNet, batch {batch}, {precision}"
        report(heading, batch, runners, references, options.rounds)
    process.close()


def report_alexnet(folder: Path, options: argparse.Namespace, *, jpeg: bool = False) -> None:
    database, name = folder / "alexnet_lmdb", "alexnet_bn_dns"
    batch = options.batch or NETS[name].batch
    if jpeg:
        database = folder / "jpeg_lmdb"
        make_images(database, options.records, encoded=True)
    else:
        make_database(database, options.records, (3, 256, 256), NETS[name].classes)
    settings = (folder, name, "solver", database, batch, options.alexnet_iterations)
    definition, held = (write_definition(*settings, data) for data in ("Data", "HeldData"))
    process = ContestantProcess(partial(ours, surgery=True))
    for precision in options.precisions:
        process.build(Task(name, precision, batch, options.device)).result()
        (way,) = process.enter(ALEXNET_SECONDS)
        flags = (precision, options.device)
        runners: dict[str, Runner] = {
            "no displays, constant data": partial(turn, process, way, ALEXNET_SECONDS),
            CONSTANT: partial(dns_train, held, *flags, "--import", HELD_DATA),
            "dns train, LMDB": partial(dns_train, definition, *flags),
        }
        if jpeg:
            runners["dns train --decode-on-gpu"] = partial(
                dns_train, definition, *flags, "--decode-on-gpu"
            )
        heading = f"AlexNet-BN{', JPEGs' * jpeg}, batch {batch}, {precision}"
        report(heading, batch, runners, [CONSTANT], options.rounds)
    process.close()


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "lenet": report_lenet,
    "alexnet": report_alexnet,
    "jpeg": partial(report_alexnet, jpeg=True),
}


def main() -> None:
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser()
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=["lenet", "alexnet"])
    parser.add_argument(
        "--precisions",
        nargs="+",
        choices=PRECISIONS,
        default=PRECISIONS if device != "cpu" else ("fp32",),
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, help="instead of each net's own")
    parser.add_argument("--records", type=int, default=4096, help="images for AlexNet-BN")
    parser.add_argument("--lenet-iterations", type=int, default=8000, help="of dns train")
    parser.add_argument("--alexnet-iterations", type=int, default=160, help="of dns train")
    options = parser.parse_args(namespace=argparse.Namespace(device=device))
    log.set_quiet(True)
    print(f"{device_name(device)}, torch {torch.__version__}; medians of {options.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        for part in options.parts:
            PARTS[part](Path(name), options)


if __name__ == "__main__":
    main()
