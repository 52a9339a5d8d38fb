#!/usr/bin/env python3
"""BatchNorm in training on a CPU, of blobs with their channels innermost, beside PyTorch's own.

    python tools/benchmarks/batch_norm_cpu.py [--threads N] [--rounds N] [--shape N,C,H,W]...

Both compute by turns, forward alone, and forward and backward. Printed are the medians in
milliseconds, the ratios of dns to PyTorch, and how far the two are from float64: the largest
relative error of a channel's 1/std.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from caffe_dns.layers.batch_statistics import normalize_batch

EPS = 1e-5
SHAPES = ((128, 16, 32, 32), (16, 64, 56, 56), (32, 64, 112, 112), (8, 256, 14, 14))

Normalize = Callable[[Tensor], tuple[Tensor, ...]]


def pytorch(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top, mean and variance as PyTorch computes them."""
    top, mean, inverse_std = torch.native_batch_norm(values, None, None, None, None, True, 0.0, EPS)
    return top, mean.detach(), inverse_std.detach() ** -2 - EPS


def dns(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same as dns computes them."""
    return normalize_batch(values, None, None, EPS)


def error(values: Tensor, normalize: Normalize) -> float:
    """The largest relative error of a channel's 1/std."""
    exact = values.double().var((0, 2, 3), correction=0) + EPS
    variance = normalize(values)[2].double() + EPS
    return float(((exact / variance).sqrt() - 1).abs().max())


def measure(values: Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of both, forward alone and with backward."""
    leaf = values.clone().requires_grad_()
    gradient = torch.randn_like(values)

    def with_backward(normalize: Normalize) -> None:
        leaf.grad = None
        normalize(leaf)[0].backward(gradient)

    contestants: dict[str, Callable[[], object]] = {
        "PyTorch forward": lambda: pytorch(values),
        "dns forward": lambda: dns(values),
        "PyTorch both": lambda: with_backward(pytorch),
        "dns both": lambda: with_backward(dns),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 2):  # the first two warm up
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if number > 1:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


def row(shape: tuple[int, ...], rounds: int) -> str:
    """A line of the table."""
    values = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    took = measure(values, rounds)
    forward = took["dns forward"] / took["PyTorch forward"]
    both = took["dns both"] / took["PyTorch both"]
    cells = [
        "x".join(map(str, shape)),
        f"{took['PyTorch forward']:.3f}",
        f"{took['dns forward']:.3f} ({forward:.2f})",
        f"{took['PyTorch both']:.3f}",
        f"{took['dns both']:.3f} ({both:.2f})",
        f"{error(values, pytorch):.1e}",
        f"{error(values, dns):.1e}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--shape", action="append", metavar="N,C,H,W")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    shapes = [tuple(map(int, shape.split(","))) for shape in given.shape or ()] or SHAPES
    print("| | PyTorch, forward | dns | PyTorch, with backward | dns | PyTorch's error | dns' |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for shape in shapes:
        print(row(shape, given.rounds), flush=True)


if __name__ == "__main__":
    main()
