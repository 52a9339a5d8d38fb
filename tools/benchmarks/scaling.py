#!/usr/bin/env python3
"""How time and memory grow with layers, parameters, records of a database, images and ranks.

    python tools/benchmarks/scaling.py [--of QUANTITY ...] [--most N] [--iterations N] [--gpu]

Trains with surgery, in a process of its own for each size: `first`, the seconds from the definition
to the end of the first iteration; `then`, the milliseconds of an iteration after that; `snapshot`,
the seconds of one; and `memory`, the most that the process takes beyond Python and PyTorch, or with
--gpu of the GPU's. Behind each figure stands its growth, from the size above to this one, divided
by that of the size: up to 1 is linear or better. Sizes above --most are left out.
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from caffe_dns import log
from caffe_dns.device.selection import use_gpu
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.parallel.ranks import JoinedRanks
from caffe_dns.parallel.world import find_world
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.solver.iteration import CapturedIteration
from caffe_dns.solver.solver import Solver
from tools.benchmarks.contestants import net_definition, training
from tools.benchmarks.processes import time_each
from tools.benchmarks.records import make_database
from tools.reliability.processes import meeting_places

BATCH = 64
UNITS = {"first": "s", "then": "ms", "snapshot": "s", "memory": "MB"}


@dataclass(frozen=True)
class Figures:
    """Of a size, in the order and the units of UNITS."""

    first: float
    then: float
    snapshot: float
    memory: float


# What grows -------------------------------------------------------------------------------------


def of_layers(count: int, _folder: Path) -> str:
    """So many layers, half of them with weights, each as wide as the last."""
    layers, below = [_constants((BATCH, 16))], "data"
    for number in range(count // 2):
        layers.append(_inner_product(f"ip{number}", below, 16))
        below = f"ip{number}"
        layers.append(
            f'layer {{ name: "relu{number}" type: "ReLU" bottom: "{below}" top: "{below}" }}'
        )
    return "\n".join([*layers, _loss(below)])


def of_parameters(count: int, _folder: Path) -> str:
    """So many weights in one matrix, which is about square."""
    width = round(count**0.5)
    return "\n".join([_constants((1, width)), _inner_product("ip", "data", width), _loss("ip")])


def of_records(count: int, folder: Path) -> str:
    """So many records of 8 x 8 bytes in an LMDB."""
    make_database(folder / "lmdb", count, (1, 8, 8))
    source = f'source: "{folder / "lmdb"}" batch_size: {BATCH} backend: LMDB'
    data = (
        f'layer {{ name: "data" type: "Data" top: "data" top: "label" data_param {{ {source} }} }}'
    )
    return "\n".join([data, _inner_product("ip", "data", 10), _loss("ip")])


def of_images(count: int, _folder: Path) -> str:
    """LeNet, with so many images in a batch."""
    return str(net_definition("models/lenet/train_val.prototxt", "lenet", count))


def of_ranks(_count: int, folder: Path) -> str:
    """LeNet in each rank, of which there are so many."""
    return of_images(BATCH, folder)


@dataclass(frozen=True)
class Quantity:
    """What grows, through which sizes; whether by processes that train together."""

    definition: Callable[[int, Path], str]
    sizes: Sequence[int]
    by_ranks: bool = False


QUANTITIES = {
    "layers": Quantity(of_layers, (10, 100, 1_000, 3_000)),
    "parameters": Quantity(of_parameters, [10**power for power in range(5, 10)]),
    "records": Quantity(of_records, [10**power for power in range(3, 7)]),
    "images": Quantity(of_images, (1, 16, 256, 4_096)),
    "ranks": Quantity(of_ranks, (1, 2, 4, 8), by_ranks=True),
}


def _constants(shape: tuple[int, int]) -> str:
    dims = " ".join(f"dim: {size}" for size in shape)
    return (
        'layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { '
        f"shape {{ {dims} }} shape {{ dim: {shape[0]} }} "
        "data_filler { value: 0.5 } data_filler { value: 1 } } }"
    )


def _inner_product(name: str, bottom: str, outputs: int) -> str:
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" '
        f'inner_product_param {{ num_output: {outputs} weight_filler {{ type: "xavier" }} }} }}'
    )


def _loss(bottom: str) -> str:
    return f'layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "{bottom}" bottom: "label" }}'


# In a process of its own ------------------------------------------------------------------------


def measure(
    definition: str, folder: Path, place: Mapping[str, str], iterations: int, gpu: bool
) -> Figures:
    """Train what the definition says, as one of the ranks of `place` if there are several.

    Raises RuntimeError with one line where that fails.
    """
    log.set_sink(lambda line: None)
    os.environ.update(place)
    if place:
        torch.set_num_threads(1)
    world = find_world()
    try:
        with nullcontext() if world is None else JoinedRanks(world) as ranks:
            return _measure(definition, folder, ranks, iterations, gpu)
    except (CaffeError, RuntimeError, MemoryError) as error:
        raise RuntimeError(first_line(error)) from None


def _measure(
    definition: str, folder: Path, ranks: JoinedRanks | None, iterations: int, gpu: bool
) -> Figures:
    device = torch.device("cuda", ranks.rank if ranks else 0) if gpu else torch.device("cpu")
    if gpu:
        use_gpu(device.index)
    if ranks is not None:
        ranks.use(device)
    before = _memory(gpu)
    start = time.perf_counter()
    param = training(parse_text(definition, NetParameter).message)
    param.snapshot_prefix = str(folder / "snap")
    param.snapshot_format = SolverParameter.HDF5  # protobuf ends at 2 GiB
    param.random_seed = 1
    solver = Solver(param, device=device, ranks=ranks)
    building = time.perf_counter() - start
    first = building + time_each(solver.step, 1)
    solver.step(CapturedIteration.WARM_UP)
    then = 1000 * time_each(solver.step, iterations)
    snapshot = time_each(lambda _: solver.snapshot(), 1)
    return Figures(first, then, snapshot, (_memory(gpu) - before) / 1e6)


def _memory(gpu: bool) -> int:
    """The most bytes that this process has had."""
    if gpu:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# The table --------------------------------------------------------------------------------------


def run(quantity: Quantity, size: int, iterations: int, gpu: bool) -> Figures:
    """The figures of a size: with several ranks, those of rank 0.

    Raises RuntimeError with one line where it failed.
    """
    places = meeting_places(size) if quantity.by_ranks else [{}]
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(len(places), get_context("spawn")) as pool,
    ):
        definition = quantity.definition(size, Path(folder))
        ends = [
            pool.submit(measure, definition, Path(folder), place, iterations, gpu)
            for place in places
        ]
        try:
            figures = [end.result() for end in ends]
        except BrokenProcessPool:
            raise RuntimeError("the process was killed, for lack of memory it seems") from None
    return figures[0]


def table(name: str, most: float, iterations: int, gpu: bool) -> Iterator[str]:
    """The lines of a quantity, as sizes are measured."""
    yield f"{name:>13}" + "".join(
        f"{title + ', ' + unit:>12}{'':6}" for title, unit in UNITS.items()
    )
    quantity = QUANTITIES[name]
    above: tuple[int, Figures] | None = None
    for size in quantity.sizes:
        if size > most:
            break
        try:
            figures = run(quantity, size, iterations, gpu)
        except RuntimeError as error:
            yield f"{size:13,}  failed: {error}"
            break
        yield f"{size:13,}" + "".join(
            f"{figure:12.3g}{growth:>6}"
            for figure, growth in zip(astuple(figures), _growths(size, figures, above), strict=True)
        )
        above = size, figures


def _growths(size: int, figures: Figures, above: tuple[int, Figures] | None) -> list[str]:
    if above is None:
        return [""] * len(UNITS)
    smaller, before = above
    return [
        f"{now / was / (size / smaller):.2f}" if was > 0 else ""
        for now, was in zip(astuple(figures), astuple(before), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--of", nargs="+", choices=QUANTITIES, default=list(QUANTITIES))
    parser.add_argument("--most", type=float, default=float("inf"))
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--gpu", action="store_true")
    options = parser.parse_args()
    for name in options.of:
        for line in table(name, options.most, options.iterations, options.gpu):
            print(line, flush=True)
        print()


if __name__ == "__main__":
    main()
