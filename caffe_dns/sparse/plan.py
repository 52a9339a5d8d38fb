"""Which layers of a net run as compiled programs: those that are faster for it, by measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.layers.base import Layer, Shape
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net.fused import FusedLayers
from caffe_dns.net.fusion import Fusion
from caffe_dns.net.net import Net
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import TEST
from caffe_dns.sparse.semi_structured import use_sparse_units

#: The share of weights that are not 0 from which on nobody tries.
DENSE = 0.8
#: What a measurement may take, in seconds, and how many passes it has at most.
SECONDS, PASSES = 0.05, 20


@dataclass(frozen=True)
class CompiledLayers:
    """Neighbouring layers as a program (`net.fused.FusedLayers`)."""

    steps: list[Step]
    #: By the shape of an image: nets may be reshaped.
    programs: dict[Shape, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    @property
    def bottoms(self) -> list[str]:
        return self.steps[0].bottoms

    def run(self, *bottoms: Tensor) -> Sequence[Tensor]:
        (bottom,) = bottoms
        shape = bottom.shape[1:]
        program = self.programs.get(shape)
        if program is None:
            from caffe_dns.sparse.program import Program

            program = Program([step.layer for step in self.steps], shape)
            self.programs[shape] = program
        return (program(bottom),)


def use_sparse(net: Net) -> Sequence[FusedLayers]:
    """Leave out zeros in the layers where that is faster, for a batch as `blob_shapes` has it.

    On a CPU, rows of layers run as programs; on a GPU, layers in the pattern 2:4 on sparse Tensor
    Cores. For nets in the phase TEST: their weights must not change any more, no gradient comes
    through, and blobs within a row are not among those that a pass returns. Returns the rows.
    Raises CaffeError for other nets, without numba on a CPU, without cuSPARSELt on a GPU.
    """
    if net.phase != TEST:
        raise CaffeError("sparse weights are for nets of the phase TEST")
    if next(net.parameters(), torch.zeros(())).dtype != torch.float32:
        raise CaffeError("sparse weights are for nets with parameters in float32")
    if net.context.device.type == "cpu":
        return _use_programs(net)
    if not torch.backends.cusparselt.is_available():
        raise CaffeError("this build of PyTorch has no cuSPARSELt, which sparse weights need")
    return use_sparse_units(net)


def _use_programs(net: Net) -> list[CompiledLayers]:
    try:
        from caffe_dns.sparse import operations
    except ImportError as error:
        raise CaffeError(f"numba does not work: {first_line(error)}") from None
    shapes = net.blob_shapes
    with torch.no_grad():
        rows = _rows(net.steps, lambda step: _can(step, shapes, operations.adder))
        found = [CompiledLayers(part) for row in rows for part in _fast_parts(row, shapes)]
    groups: dict[Layer, FusedLayers] = {group.steps[0].layer: group for group in found}
    net.fusion = Fusion({True: groups, False: groups}, None)
    names = ", ".join(step.layer.name for group in found for step in group.steps)
    log.info(f"Sparse weights are faster in: {names or 'no layer'}")
    return found


def _rows(steps: Sequence[Step], can: Callable[[Step], bool]) -> Iterator[list[Step]]:
    """The longest rows of steps that can, each reading what the one before has made."""
    row: list[Step] = []
    for step in steps:
        if row and (not can(step) or list(step.bottoms) != list(row[-1].tops)):
            yield row
            row = []
        if can(step):
            row.append(step)
    if row:
        yield row


def _fast_parts(row: list[Step], shapes: dict[str, Shape]) -> Iterator[list[Step]]:
    """The parts of a row that are faster as programs, as is each of their layers with weights."""
    slow = {step.layer for step in row if _weighs(step) and not _wins([step], shapes)}
    for part in _rows(row, lambda step: step.layer not in slow):
        if any(map(_weighs, part)) and _wins(part, shapes):
            yield part


def _weighs(step: Step) -> bool:
    return isinstance(step.layer, WeightedLayer)


def _can(step: Step, shapes: dict[str, Shape], adder: Callable[..., object]) -> bool:
    if (len(step.bottoms), len(step.tops)) != (1, 1) or any(step.loss_weights):
        return False
    if adder(step.layer, shapes[step.bottoms[0]]) is None:
        return False
    if not isinstance(step.layer, WeightedLayer):
        return True
    weight, _ = step.layer.effective()
    return int(weight.count_nonzero()) <= DENSE * weight.numel()


def _wins(steps: list[Step], shapes: dict[str, Shape]) -> bool:
    """Whether these are faster as a program."""
    bottom = torch.randn(shapes[steps[0].bottoms[0]])
    compiled = CompiledLayers(steps)

    def layers() -> None:
        value = bottom
        for step in steps:
            top = step.layer(value)
            (value,) = (top,) if isinstance(top, Tensor) else top

    return _fastest(lambda: compiled.run(bottom)) < _fastest(layers)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some passes; the first does not count."""
    work()
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < PASSES and (len(times) < 3 or time.perf_counter() < end):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
