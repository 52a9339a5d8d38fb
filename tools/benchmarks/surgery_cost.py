#!/usr/bin/env python3
"""What surgery costs: an iteration with it against the same one without.

    python tools/benchmarks/surgery_cost.py [--nets NET ...] [--precision P] [--copies N]
                                            [--rounds N] [--seconds S] [--batch N]

Each net is trained without surgery, with masks that are never renewed, and with masks renewed in
every iteration, on images that are on the device already. Of each kind there are several copies,
for no two recordings of an iteration are equally fast; all of them train in turn, round after
round. Printed are medians of the copies, of which each has its median of the rounds, and the
fastest and the slowest copy. Runs on a CPU as well.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from caffe_dns import log
from caffe_dns.device.heap import keep_freed_memory
from caffe_dns.device.precision import PRECISIONS, use_precision
from caffe_dns.device.selection import use_gpu
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.upgrade import read_solver
from caffe_dns.solver.iteration import CapturedIteration
from caffe_dns.solver.solver import Solver
from tools.benchmarks.contestants import MODELS, hold_data, net_definition, training
from tools.benchmarks.nets_gpu import device_name
from tools.benchmarks.plain_nets import NETS
from tools.benchmarks.processes import milliseconds

#: Title -> the net's name, and its solver in models/.
SUBJECTS = {
    "lenet": ("lenet", "prune_solver"),
    "lenet_official": ("lenet", "guo_solver"),
    "alexnet_bn_dns": ("alexnet_bn_dns", "solver"),
}
OFF, NEVER, ALWAYS = "off", "never due", "always due"


def definition(title: str, batch: int, kind: str) -> SolverParameter:
    name, solver = SUBJECTS[title]
    net = read_solver(MODELS / name / f"{solver}.prototxt").message.net
    param = training(net_definition(net, name, batch))
    if kind == NEVER:
        param.surgery_stop_iter = 0
    schedule_official(param.net_param, kind)
    return param


def schedule_official(net: NetParameter, kind: str) -> None:
    """Let layers of the official kind renew their masks in every iteration, or in none."""
    for layer in net.layer:
        for field in ("cconvolution_param", "cinner_product_param"):
            if layer.HasField(field):
                settings = getattr(layer, field)
                settings.power = 0
                settings.iter_stop = 0 if kind == NEVER else 2**31 - 1


def make(title: str, batch: int, kind: str, device: torch.device, precision: str) -> Solver:
    """A solver that has warmed up."""
    activations = use_precision(precision, device)
    param = definition(title, batch, kind)
    solver = Solver(param, device=device, surgery=kind != OFF, activations=activations)
    hold_data(solver.net, NETS[SUBJECTS[title][0]].classes)
    solver.step(CapturedIteration.WARM_UP + 2 if device.type == "cuda" else 1)
    return solver


def report(title: str, device: torch.device, options: argparse.Namespace) -> None:
    batch = options.batch or NETS[SUBJECTS[title][0]].batch
    copies = {
        (kind, number): make(title, batch, kind, device, options.precision)
        for number in range(options.copies)
        for kind in (OFF, NEVER, ALWAYS)
    }
    rounds = [
        {copy: milliseconds(solver.step, options.seconds) for copy, solver in copies.items()}
        for _ in range(options.rounds)
    ]
    for solver in copies.values():
        solver.close()
    medians = {copy: statistics.median(times[copy] for times in rounds) for copy in copies}
    heading = f"{title}, batch {batch}, {options.precision}"
    print(f"{heading:40}{'ms':>9}{'fastest':>9}{'slowest':>9}{'more':>8}")
    usual: dict[str, float] = {}
    for kind in (OFF, NEVER, ALWAYS):
        own = [medians[kind, number] for number in range(options.copies)]
        usual[kind] = statistics.median(own)
        more = usual[kind] / usual[OFF] - 1
        row = f"  surgery {kind:30}{usual[kind]:9.4f}{min(own):9.4f}{max(own):9.4f}{more:8.1%}"
        print(row, flush=True)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--precision", choices=PRECISIONS, default="tf32" if on_gpu else "fp32")
    parser.add_argument("--copies", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of each turn")
    parser.add_argument("--batch", type=int, help="instead of each net's own")
    options = parser.parse_args()
    log.set_quiet(True)
    keep_freed_memory()  # as training does on a CPU
    device = use_gpu(0) if on_gpu else torch.device("cpu")
    print(
        f"{device_name(str(device))}, torch {torch.__version__}; {options.copies} copies, "
        f"{options.rounds} rounds"
    )
    for title in options.nets:
        report(title, device, options)


if __name__ == "__main__":
    main()
