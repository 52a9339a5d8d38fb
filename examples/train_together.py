#!/usr/bin/env python3
"""Train one net in several processes of a program, each of which sees its part of the records.

python train_together.py models/lenet/solver.prototxt [PROCESSES]
"""

from __future__ import annotations

import sys
from multiprocessing import get_context

import caffe_dns.pycaffe as caffe


def solve(solver_file: str, rank: int, processes: int, uid: bytes) -> None:
    caffe.set_solver_count(processes)
    caffe.set_solver_rank(rank)
    caffe.set_multiprocess(True)
    solver = caffe.get_solver(solver_file)
    nccl = caffe.NCCL(solver, uid)
    nccl.bcast()  # all begin with what rank 0 has drawn
    solver.add_callback(nccl)  # gradients are averaged before each update
    solver.step(solver.param.max_iter)
    if rank == 0:
        solver.snapshot()
        print(f"{processes} processes have trained {solver.iter} iterations")


def main(solver_file: str, processes: int) -> int:
    uid = caffe.NCCL.new_uid()
    new = get_context("spawn").Process
    started = [
        new(target=solve, args=(solver_file, rank, processes, uid)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return max(abs(process.exitcode or 0) for process in started)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2))
