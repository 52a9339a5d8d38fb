#!/usr/bin/env python3
"""What `caffe_dns.prune` costs: a step of a PyTorch loop with it against the same one without.

    python tools/benchmarks/prune_cost.py [--nets NET ...] [--ways WAY ...] [--batch N] [--fp32]
                                          [--copies N] [--rounds N] [--renewals N]

Plain nets, and a transformer of 12 blocks of width 768, are trained on constant random data that
is on the device already, under autocast to bfloat16 unless --fp32: eager, compiled, and replayed
from a CUDA graph. Masks follow a compression and are renewed every 50 steps, as by default, so
that each turn takes a multiple of that, and begins after all that happens once. Of each way there
are several copies with and without; all train in turn, round after round. Printed are medians of
the copies, each the median of its rounds, and how much more that is.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import caffe_dns
from caffe_dns.surgery.masked_layers import Replayed
from tools.benchmarks.nets_gpu import device_name
from tools.benchmarks.plain_nets import NETS, Plain
from tools.benchmarks.processes import time_each

#: So small that the weights stay about what they are.
RATE = 1e-6
WARM_UP = 3
#: Steps between renewals.
INTERVAL = 50
#: More steps than a measurement makes, so that masks are renewed all along.
STEPS = 10**6
TOKENS, WIDTH, LENGTH = 32000, 768, 512
WAYS = ("eager", "compiled", "graph")


class Transformer(nn.Module):
    """Called with tokens and what is to come, it gives its loss; the head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        block = nn.TransformerEncoderLayer(
            WIDTH, 12, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, 12, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, TOKENS, bias=False)
        self.head.weight = self.embed.weight
        mask = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        hidden = self.blocks(self.embed(tokens), mask=self.mask, is_causal=True)
        return F.cross_entropy(self.head(hidden).flatten(0, 1), wanted.flatten())


def problem(name: str, batch: int | None, device: torch.device) -> tuple[nn.Module, list[Tensor]]:
    """A net, and what it is called with."""
    if name == "transformer":
        tokens = torch.randint(0, TOKENS, (batch or 32, LENGTH), device=device)
        return Transformer().to(device), [tokens, tokens.roll(-1, 1)]
    plain: Plain = NETS[name]
    size = batch or plain.batch
    images = torch.rand(size, *plain.image, device=device)
    labels = torch.randint(0, plain.classes, (size,), device=device)
    net = plain.build().to(device)
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net, [images.to(memory_format=torch.channels_last), labels]


def trainer(
    name: str, way: str, options: argparse.Namespace, device: torch.device, *, pruned: bool
) -> Callable[[int], None]:
    """A function that trains for a number of steps."""
    torch.manual_seed(1)
    net, inputs = problem(name, options.batch, device)
    pruner = (
        caffe_dns.prune(net, compression=10, steps=STEPS, interval=INTERVAL) if pruned else None
    )
    optimizer: torch.optim.Optimizer
    if name == "transformer":
        optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, capturable=way == "graph")
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9, weight_decay=5e-4)
    run = torch.compile(net) if way == "compiled" else net

    def iteration() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=not options.fp32):
            loss = run(*inputs)
        loss.backward()
        optimizer.step()

    once = Recorded(iteration) if way == "graph" else iteration

    def train(steps: int) -> None:
        for _ in range(steps):
            once()
            if pruner is not None:
                pruner.step()

    # On a GPU, renewals are recorded when they have run a few times.
    train(INTERVAL * Replayed.WARM_UP + 1 if device.type == "cuda" else WARM_UP)
    return train


class Recorded:
    """An iteration replayed from a CUDA graph.

    The graph owns only what was allocated while it was recorded: the iteration is kept because it
    holds the weights and the inputs, to which the graph has bare addresses.
    """

    def __init__(self, iteration: Callable[[], None]) -> None:
        self._iteration = iteration
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                iteration()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            iteration()

    def __call__(self) -> None:
        self._graph.replay()


def report(name: str, way: str, options: argparse.Namespace, device: torch.device) -> None:
    trainers = {
        (pruned, number): trainer(name, way, options, device, pruned=pruned)
        for number in range(options.copies)
        for pruned in (False, True)
    }
    steps = INTERVAL * options.renewals
    rounds = [
        {copy: 1000 * time_each(train, steps) for copy, train in trainers.items()}
        for _ in range(options.rounds)
    ]
    medians = {copy: statistics.median(times[copy] for times in rounds) for copy in trainers}
    without, with_it = (
        statistics.median(medians[pruned, number] for number in range(options.copies))
        for pruned in (False, True)
    )
    more = with_it / without - 1
    print(f"{name:16}{way:10}{without:10.3f}{with_it:10.3f}{more:9.2%}", flush=True)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    names = [*NETS, "transformer"]
    parser = argparse.ArgumentParser()
    parser.add_argument("--nets", nargs="+", choices=names, default=["resnet50", "transformer"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS if on_gpu else ["eager"])
    parser.add_argument("--batch", type=int, help="instead of each net's own")
    parser.add_argument("--fp32", action="store_true", help="without autocast")
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--renewals", type=int, default=1, help="in each turn")
    options = parser.parse_args()
    device = torch.device("cuda" if on_gpu else "cpu")
    print(f"{device_name(str(device))}, torch {torch.__version__}; ms a step")
    print(f"{'net':16}{'way':10}{'without':>10}{'with':>10}{'more':>9}")
    for name in options.nets:
        for way in options.ways:
            report(name, way, options, device)
            if way == "compiled":
                torch.compiler.reset()
            if on_gpu:
                torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
