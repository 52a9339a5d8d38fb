"""The two who train the same net on the same device: caffe_dns and plain PyTorch.

A contestant is a function that builds what it can while others are at work, and returns a function
that wants the device for itself: it warms up, then it yields each way in which the contestant can
train, its name and a function that trains for a number of iterations. Both train on constant random
images that are on the device already. When who runs is up to the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from caffe_dns import log
from caffe_dns.device.heap import keep_freed_memory
from caffe_dns.device.precision import use_precision
from caffe_dns.device.selection import use_gpu
from caffe_dns.layers import Context
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TRAIN, NetParameter, SolverParameter
from caffe_dns.proto.upgrade import read_net, read_solver
from caffe_dns.solver.iteration import CapturedIteration
from caffe_dns.solver.solver import Solver
from tools.benchmarks.plain_nets import NETS
from tools.zoo.variants import dummy

MODELS = Path(__file__).resolve().parents[2] / "models"
#: So small that the weights stay about what they are, however long the measurement.
RATE, MOMENTUM, DECAY = 1e-5, 0.9, 5e-4
WARM_UP = 3
Step = Callable[[int], object]
Ways = Iterator[tuple[str, Step]]
Built = Callable[[], Ways]


@dataclass(frozen=True)
class Task:
    """Which net to train, and how."""

    net: str
    precision: str
    batch: int
    device: str


# caffe_dns --------------------------------------------------------------------------------------


def ours(task: Task, *, surgery: bool) -> Built:
    """The training loop of `dns train`, without tests, snapshots and displays.

    Which ways are the fastest it finds by trying, so that all of it is built alone.
    """
    return partial(our_ways, task, surgery=surgery)


def our_ways(task: Task, *, surgery: bool) -> Ways:
    """The way that `dns train` takes; what trials took does not count."""
    device = torch.device(task.device)
    if device.type == "cuda":
        use_gpu(device.index)
    else:
        keep_freed_memory()
    ways: list[str] = []
    log.set_sink(lambda line: ways.append("CUDA graph") if "from a CUDA graph" in line else None)
    activations = use_precision(task.precision, device)
    param = solver_definition(task.net, task.batch, surgery=surgery)
    solver = Solver(param, device=device, surgery=surgery, activations=activations)
    hold_data(solver.net, NETS[task.net].classes)
    if device.type == "cuda":
        # What memory the trials took does not count. Then the iteration is captured.
        solver.step(CapturedIteration.WARM_UP)
        torch.cuda.reset_peak_memory_stats()
    solver.step(1)
    yield ways[0] if ways else "eager", solver.step


def solver_definition(net: str, batch: int, *, surgery: bool) -> SolverParameter:
    """The solver of models/ for training with or without surgery, on images from a filler."""
    prunes = surgery and (MODELS / net / "prune_solver.prototxt").exists()
    file = MODELS / net / ("prune_solver.prototxt" if prunes else "solver.prototxt")
    return training(net_definition(read_solver(file).message.net, net, batch))


def training(net: NetParameter) -> SolverParameter:
    """How every net is trained here; with surgery, masks are renewed in every iteration."""
    return SolverParameter(
        net_param=net,
        base_lr=RATE,
        lr_policy="fixed",
        momentum=MOMENTUM,
        weight_decay=DECAY,
        surgery_iter_power=0,
    )


def net_definition(file: str, name: str, batch: int) -> NetParameter:
    """A net of models/ with images and labels from fillers instead of its database."""
    return dummy(read_net(MODELS.parent / file).message, (batch, *NETS[name].image))


def hold_data(net: Net, classes: int) -> None:
    """Let the net's source give the same random batch again and again.

    Drawing one anew each time would be work that reading data is not.
    """
    source = next(step.layer for step in net.steps if step.layer.is_source)
    images, labels = (
        torch.empty(net.blob_shapes[top], device=net.context.device) for top in source.param.top
    )
    batch = (images.normal_(), labels.random_(classes))
    source.forward = lambda *bottoms: batch  # type: ignore[method-assign]


# Plain PyTorch ----------------------------------------------------------------------------------


class PlainTraining:
    """Forward, loss, backward and SGD as one writes them.

    In tf32 and bf16 in channels_last, in bf16 under autocast; with a `mode`, by torch.compile.
    """

    def __init__(self, task: Task, *, mode: str | None) -> None:
        device, plain = torch.device(task.device), NETS[task.net]
        tensor_format = torch.contiguous_format if task.precision == "fp32" else torch.channels_last
        with device:  # where drawing weights takes no time
            net = plain.build()
        self.net = net.to(memory_format=tensor_format)  # type: ignore[call-overload]
        torch.compiler.reset()  # which takes up only so many nets of one class
        self.loss = torch.compile(self.net, mode=mode) if mode else self.net
        images = torch.randn(task.batch, *plain.image, device=device)
        self.images = images.to(memory_format=tensor_format)
        self.labels = torch.randint(plain.classes, (task.batch,), device=device)
        self.optimizer = torch.optim.SGD(
            self.net.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, fused=True
        )
        self.cast = torch.autocast(
            device.type, torch.bfloat16, enabled=task.precision == "bf16", cache_enabled=False
        )

    def iterate(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.cast:
            loss = self.loss(self.images, self.labels)
        loss.backward()
        self.optimizer.step()

    def eager(self, iterations: int) -> None:
        for _ in range(iterations):
            self.iterate()

    def warm_up(self, iterations: int) -> None:
        """Train on a stream that is not the default one, as capturing needs."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.eager(iterations)
        torch.cuda.current_stream().wait_stream(stream)

    def capture(self) -> Step:
        """One iteration as a CUDA graph; what is returned replays it."""
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.iterate()

        def replay(iterations: int) -> None:
            for _ in range(iterations):
                graph.replay()

        return replay


def theirs(task: Task, *, benchmark: bool = False, mode: str | None = None) -> Built:
    """Plain PyTorch, eager and as a CUDA graph; with `benchmark`, cuDNN tries its algorithms out.

    With a `mode`, torch.compile compiles it now.
    """
    use_precision(task.precision, torch.device(task.device))
    training = PlainTraining(task, mode=mode)
    if mode:
        # PyTorch keeps what cuDNN has once chosen, but apart from what it chooses without this
        # flag: trials wait until nobody disturbs them.
        torch.backends.cudnn.deterministic = True
        training.eager(1)
        torch.backends.cudnn.deterministic = False
    return partial(their_ways, training, benchmark=benchmark)


def their_ways(training: PlainTraining, *, benchmark: bool) -> Ways:
    """What memory cuDNN's trials took does not count: the peak begins after them."""
    torch.backends.cudnn.benchmark = benchmark
    if training.images.device.type != "cuda":
        training.eager(1)
        yield "eager", training.eager
        return
    training.warm_up(WARM_UP)
    torch.cuda.reset_peak_memory_stats()
    yield "eager", training.eager
    yield "CUDA graph", training.capture()


# Whether they are the same ----------------------------------------------------------------------


def difference(name: str, batch: int) -> float:
    """How far loss and gradients of the two differ, with equal weights and without dropout.

    The largest difference within a blob, relative to the largest number in it; in float64 on the
    CPU. Gradients that are zero but for rounding, of biases before a normalisation, are measured by
    the largest of all gradients.
    """
    definition = net_definition(f"models/{name}/train_val.prototxt", name, batch)
    definition.state.phase = TRAIN
    kept = [layer for layer in definition.layer if layer.type != "Dropout"]
    del definition.layer[:]
    definition.layer.extend(kept)
    net = Net(definition, Context(surgery=False)).double()
    plain = NETS[name].build().double()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        for own, other in zip(net.parameters(), plain.parameters(), strict=True):
            other.copy_(own.view_as(other))
    images = torch.randn(batch, *NETS[name].image, dtype=torch.float64)
    labels = torch.randint(NETS[name].classes, (batch,))
    loss = net.loss(net.compute({"data": images, "label": labels.double()}))
    plain_loss = plain(images, labels)
    pairs = [(loss.detach(), plain_loss.detach())]
    for part in (loss, plain_loss):
        part.backward()
    for own, other in zip(net.parameters(), plain.parameters(), strict=True):
        pairs.append((gradient(own), gradient(other).view_as(own)))
    least = 1e-9 * max(float(own.abs().max()) for own, _ in pairs[1:])
    return max(
        float((own - other).abs().max() / own.abs().max().clamp(min=least)) for own, other in pairs
    )


def gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
