"""How much memory each layer of a net takes: its blobs, its tops, and what backward needs.

What backward needs is what autograd saves, so it is known on every device. The peak is known only
on a GPU, whose allocator counts it. How long layers take is in `timing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from caffe_dns.net import Net
from caffe_dns.net.wiring import Step
from caffe_dns.profile.timing import backward_layer, forward_layer, zero_inputs


@dataclass
class LayerMemory:
    """Sizes in bytes. Memory that several layers use counts for the first of them."""

    #: Weights, biases, masks and statistics.
    parameters: int = 0
    #: The tops, except those that share a bottom's memory.
    tops: int = 0
    #: What the layer's forward allocates and backward needs, including tops.
    kept: int = 0
    #: The most that forward or backward allocates at once; None where it is not measured.
    peak: int | None = None


def measure_memory(net: Net) -> list[LayerMemory]:
    """The memory of each of `net.steps`, by a pass over the layers one by one.

    Layers that prefetch data are stopped, because their allocations would count for other layers.
    A later pass starts them again.
    """
    on_gpu = net.context.device.type == "cuda"
    ledger = _Ledger(net)
    blobs = zero_inputs(net)
    passed: list[tuple[list[Tensor], list[Tensor]]] = []
    for index, step in enumerate(net.steps):
        ledger.enter_parameters(index, step)
        gauge = _Gauge(net.context.device) if on_gpu and not step.layer.is_source else None
        with saved_tensors_hooks(partial(ledger.enter_saved, index), _unchanged):
            passed.append(forward_layer(step, blobs))
        if gauge is not None:
            ledger.memories[index].peak = gauge.read()
        ledger.enter_tops(index, step, [blobs[top] for top in step.tops])
        close = getattr(step.layer, "close", None)
        if step.layer.is_source and close is not None:
            close()
    if on_gpu:
        _measure_backward(net, passed, ledger.memories)
    return ledger.memories


def _measure_backward(
    net: Net, passed: list[tuple[list[Tensor], list[Tensor]]], memories: list[LayerMemory]
) -> None:
    """Raise the peaks to those of backward."""
    diffs: dict[str, Tensor] = {}
    for step, memory in zip(reversed(net.steps), reversed(memories), strict=True):
        bottoms, tops = passed.pop()
        if step.needs_backward:
            gauge = _Gauge(net.context.device)
            backward_layer(step, bottoms, tops, diffs)
            memory.peak = max(memory.peak or 0, gauge.read())
        del bottoms, tops


class _Gauge:
    """The most memory that is allocated at once on a GPU, beyond what was there at the start."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        torch.cuda.reset_peak_memory_stats(device)
        self._before = torch.cuda.memory_allocated(device)

    def read(self) -> int:
        """Bytes, from the start until now."""
        return torch.cuda.max_memory_allocated(self._device) - self._before


class _Ledger:
    """Which layer allocated which memory, and how much of it is saved for backward."""

    def __init__(self, net: Net) -> None:
        self.memories = [LayerMemory() for _ in net.steps]
        #: By address: which layer made it, and how many bytes it has. Nothing is given back before
        #: the end of forward, so no address comes twice.
        self._makers: dict[int, tuple[int, int]] = {}
        self._parameters: set[int] = set()
        self._tops: set[int] = set()
        self._saved: set[int] = set()

    def enter_parameters(self, index: int, step: Step) -> None:
        """Count what a layer owns."""
        for blob in [*step.layer.parameters(), *step.layer.buffers()]:
            address, size = _storage(blob)
            if address not in self._parameters:
                self._parameters.add(address)
                self.memories[index].parameters += size

    def enter_tops(self, index: int, step: Step, tops: list[Tensor]) -> None:
        """Count what a layer has put out."""
        for top in tops:
            address, size = _storage(top)
            if step.layer.is_source:
                size = top.nbytes  # of batches that were read together, this one
            maker, _ = self._makers.setdefault(address, (index, size))
            if maker == index and address not in self._tops | self._parameters:
                self._tops.add(address)
                self.memories[index].tops += size

    def enter_saved(self, index: int, tensor: Tensor) -> Tensor:
        """Count what is saved while a layer runs; returns it as it is."""
        address, size = _storage(tensor)
        maker, size = self._makers.setdefault(address, (index, size))
        if address not in self._saved | self._parameters:
            self._saved.add(address)
            self.memories[maker].kept += size
        return tensor


def _storage(tensor: Tensor) -> tuple[int, int]:
    """The address and the bytes of the memory behind a tensor, of which it may show a part."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
