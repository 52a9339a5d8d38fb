#!/usr/bin/env python3
"""How training would scale to more GPUs than there are: a model, held to a measurement of two.

    python tools/benchmarks/scaling_model.py [--nets NET ...] [--gpus N ...]
                                             [--two-gpus tf32=0.975 bf16=0.986]

For each net, precision and number of GPUs it takes from dns itself what the ranks send, and in
which order; from the multiplications of each layer when in backward that is there; and from a
network's bandwidth and latency how long it is on its way, one transfer after the other. What two
GPUs lose beyond that, it takes from the measurement. The larger figure of a pair holds if that is
work which each rank does besides; the smaller if ranks wait for the slowest, and their times are
normally distributed. Nothing here runs on a GPU.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import NormalDist, fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from torch import Tensor

from caffe_dns import log
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.parallel.averaging import GradientAverage
from caffe_dns.parallel.ranks import Ranks
from caffe_dns.parallel.sufficient_factors import share_gradients
from caffe_dns.reports.summary import summarize
from tools.benchmarks.contestants import net_definition
from tools.benchmarks.plain_nets import NETS

#: Images/s of one H200 with the versions of which several GPUs were measured.
RATES = {
    ("alexnet_bn_dns", "tf32"): 25_876,
    ("alexnet_bn_dns", "bf16"): 53_297,
    ("resnet50", "tf32"): 4_362,
    ("resnet50", "bf16"): 8_412,
    ("vgg16", "tf32"): 2_411,
    ("vgg16", "bf16"): 5_143,
}
#: The net that two GPUs were measured with.
MEASURED = "alexnet_bn_dns"
#: The part of an iteration that is forward; each layer's backward has its products twice.
FORWARD = 1 / 3
#: What the mean of a number takes, and a row of an inner product, in bytes.
GRADIENT, ROW = 4, {"tf32": 4, "bf16": 2}
#: What an update reads and writes of a number, and what a GPU moves in a second, in bytes.
UPDATE, MEMORY = 20, 4e12
#: GPUs of a host; seconds to start a transfer, and between meetings about signals.
HOST, START, MEETING = 8, 20e-6, 0.1


@dataclass(frozen=True)
class Network:
    """Bytes/s with which each GPU of a ring sends, and seconds from one to the next.

    `between` is that of hosts with all their GPUs; meetings go over the CPU, in `message` seconds.
    """

    name: str
    within: float = 300e9
    between: float = 300e9
    hop_within: float = 2e-6
    hop_between: float = 6e-6
    message: float = 50e-6

    def bandwidth(self, gpus: int) -> float:
        return self.within if gpus <= HOST else min(self.within, self.between)

    def latency(self, gpus: int) -> float:
        """Of a transfer along a tree, there and back."""
        inside, hosts = min(gpus, HOST), -(-gpus // HOST)
        hops = math.log2(inside) * self.hop_within + math.log2(hosts) * self.hop_between
        return START + 2 * hops


#: By how fast hosts are connected, in Gb/s. GPUs of one host have NVLink in both.
NETWORKS = [
    Network("400 a GPU"),
    Network("100 a host", between=11e9),
]


class Imagined(Ranks):
    """So many ranks, and what updates their parameters.

    Notes what they would average, in which groups, and of what each would update a part.
    """

    may_set_apart = True

    def __init__(self, size: int) -> None:
        self.size = size
        self.local_size = min(size, HOST)
        self.groups: list[list[Tensor]] = []
        self.apart: set[int] = set()

    def set_apart(self, param: Param, part: Callable[[Tensor], Tensor]) -> Imagined:
        self.apart.add(id(param.tensor))
        return self

    def apply_to(self, gradients: list[Tensor]) -> None:
        raise NotImplementedError("nothing is computed")

    def average(self, params: Sequence[Param]) -> GradientAverage | None:
        movable = [param.tensor for param in params if isinstance(param.layer, WeightedLayer)]
        tensors = [param.tensor for param in params if param.tensor.requires_grad]
        average = GradientAverage(tensors, lambda values: lambda: None, movable)
        self.groups = average.groups
        return average


@dataclass(frozen=True)
class Transfer:
    """What goes on its way when this part of backward is over; `copies` is what each GPU sends."""

    ready: float
    size: float
    copies: Callable[[int], float]


@dataclass(frozen=True)
class Plan:
    """What an iteration sends; what part of backward multiplies the rows that one rank sends.

    `in_parts` is how many numbers have each rank update its part of them.
    """

    transfers: list[Transfer]
    products: float
    in_parts: int = 0


def plan(net: Net, precision: str, gpus: int) -> Plan:
    """What so many ranks of this net send."""
    ranks = Imagined(gpus)
    share_gradients(net, ranks, ranks)
    macs = {row.name: row.macs for row in summarize(net)}
    whole = sum(macs.values())
    ready: dict[int, float] = {}
    transfers, products, in_parts, past = [], 0.0, 0, 0.0
    averaged = {id(tensor) for group in ranks.groups for tensor in group}
    for step in reversed(net.steps):
        part = macs.get(step.layer.name, 0) / whole
        for blob in step.layer.blobs:
            ready[id(blob)] = past + part
            if blob.requires_grad and id(blob) not in averaged:
                shape = net.blob_shapes[step.tops[0]]
                sent = shape[0] * sum(blob.shape) * ROW[precision]
                transfers.append(Transfer(past, sent, lambda n: n - 1))
                if id(blob) in ranks.apart:
                    weights = GRADIENT * blob.numel()
                    transfers.append(Transfer(past + part, weights, lambda n: (n - 1) / n))
                    in_parts += blob.numel()
                else:
                    products += part / 2
        past += part
    for group in ranks.groups:
        sent = GRADIENT * sum(tensor.numel() for tensor in group)
        last = max(ready[id(tensor)] for tensor in group)
        transfers.append(Transfer(last, sent, lambda n: 2 * (n - 1) / n))
    return Plan(sorted(transfers, key=lambda transfer: transfer.ready), products, in_parts)


def iteration(plan: Plan, alone: float, gpus: int, network: Network) -> float:
    """Seconds of an iteration that takes `alone` seconds on one GPU, as far as the model goes."""
    backward = (1 - FORWARD) * alone
    free = 0.0
    for transfer in plan.transfers:
        seconds = transfer.size * transfer.copies(gpus) / network.bandwidth(gpus)
        free = max(free, transfer.ready * backward) + seconds + network.latency(gpus)
    products = (gpus - 1) * plan.products * backward
    updates = (1 - 1 / gpus) * plan.in_parts * UPDATE / MEMORY
    meeting = 2 * math.log2(gpus) * network.message / MEETING
    return (FORWARD * alone + max(backward, free) + products - updates) * (1 + meeting)


@cache
def slowest(count: int) -> float:
    """By how many standard deviations the slowest of so many is late, on average."""
    normal, steps = NormalDist(), 20_000
    return fmean(normal.inv_cdf(((i + 0.5) / steps) ** (1 / count)) for i in range(steps))


@dataclass(frozen=True)
class Prediction:
    """Megabytes that a GPU sends in an iteration, and what is left of N times the speed."""

    megabytes: float
    worst: float
    best: float


def predict(
    net: Net, name: str, precision: str, gpus: int, network: Network, lost: float
) -> Prediction:
    """`lost` is the part of an iteration that two GPUs lose to what is not modelled."""
    planned = plan(net, precision, gpus)
    alone = NETS[name].batch / RATES[name, precision]
    seconds = iteration(planned, alone, gpus, network)
    sent = sum(transfer.size * transfer.copies(gpus) for transfer in planned.transfers)
    late = lost * slowest(gpus) / slowest(2)
    return Prediction(sent / 1e6, *(alone / (seconds + part * alone) for part in (late, lost)))


def left_over(net: Net, name: str, precision: str, measured: float) -> float:
    """The part of an iteration that two GPUs lose beyond what the model says."""
    alone = NETS[name].batch / RATES[name, precision]
    return 1 / measured - iteration(plan(net, precision, 2), alone, 2, NETWORKS[0]) / alone


def load(name: str) -> Net:
    with log.silenced:
        file = f"models/{name}/train_val.prototxt"
        return Net(net_definition(file, name, NETS[name].batch))


def main() -> None:
    names = list(dict.fromkeys(name for name, _ in RATES))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=names, default=names)
    parser.add_argument("--gpus", nargs="+", type=int, default=[2, 4, 8, 64, 1024])
    parser.add_argument(
        "--two-gpus",
        nargs="+",
        default=["tf32=0.975", "bf16=0.986"],
        help="what two GPUs have of twice the speed of one, training AlexNet-BN",
    )
    options = parser.parse_args()
    measured = {word.split("=")[0]: float(word.split("=")[1]) for word in options.two_gpus}
    net = load(MEASURED)
    lost = {key: left_over(net, MEASURED, key, value) for key, value in measured.items()}
    for key, part in lost.items():
        print(
            f"AlexNet-BN, {key}, two GPUs: {measured[key]:.3f} measured, of which the model ",
            end="",
        )
        print(f"explains {1 / measured[key] - 1 - part:.1%} of an iteration and not {part:.1%}")
    print(f"\n| batch of a GPU | Gb/s | GPUs | MB | {' | '.join(lost)} |")
    print("| --- | --- | ---: | ---: |" + " ---: |" * len(lost))
    for name in options.nets:
        net = load(name)
        for network in NETWORKS:
            for gpus in options.gpus:
                if gpus > HOST:
                    print(row(net, name, gpus, network, lost))
                elif network is NETWORKS[0]:
                    print(row(net, name, gpus, replace(network, name="one host"), lost))


def row(net: Net, name: str, gpus: int, network: Network, lost: dict[str, float]) -> str:
    """Of the table: what each precision would have on so many GPUs."""
    found = [predict(net, name, key, gpus, network, part) for key, part in lost.items()]
    pairs = [dict.fromkeys((f"{one.worst:.3f}", f"{one.best:.3f}")) for one in found]
    megabytes = " / ".join(dict.fromkeys(f"{one.megabytes:,.0f}" for one in found))
    title = f"{name}, {NETS[name].batch}"
    cells = [title, network.name, f"{gpus:,}", megabytes, *map(" to ".join, pairs)]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
