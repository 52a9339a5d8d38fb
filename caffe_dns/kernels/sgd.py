"""The update of SGD and Nesterov for any number of parameters, in one kernel; in two with clipping.

PyTorch's foreach operations need five or six passes over memory for it, and as many launches, and
to clip gradients eight more launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from caffe_dns.device.memory_format import laid_out_as
from caffe_dns.kernels import is_capturing
from caffe_dns.kernels.blocks import Blocks

#: How many elements one program of the kernel updates.
BLOCK = 1024


@triton.jit
def _gradient(addresses, owner, places, inside):
    """Some numbers of a parameter's gradient, which is of float32 or of bfloat16."""
    gradient = tl.load(addresses + 4 * owner + 2)
    if tl.load(addresses + 4 * owner + 3) != 0:
        g = tl.load(gradient.to(tl.pointer_type(tl.bfloat16)) + places, mask=inside, other=0.0).to(
            tl.float32
        )
    else:
        g = tl.load(gradient.to(tl.pointer_type(tl.float32)) + places, mask=inside, other=0.0)
    return g


@triton.jit
def _norms(addresses, counts, owners, starts, norms, BLOCK: tl.constexpr):
    """The norm of each block of the gradients."""
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    places = tl.load(starts + program) + tl.arange(0, BLOCK)
    g = _gradient(addresses, owner, places, places < tl.load(counts + owner))
    tl.store(norms + program, tl.sqrt(tl.sum(g * g)))


@triton.jit
def _update(
    addresses,
    counts,
    settings,
    owners,
    starts,
    rate,
    momentum,
    norm,
    limit,
    L1: tl.constexpr,
    NESTEROV: tl.constexpr,
    CLIP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """h = momentum h + rate (g + decay w); w -= h, or Nesterov's step (sgd_solver.cpp).

    With CLIP, g is scaled down first where the norm of all gradients is above the limit.
    """
    program = tl.program_id(0)
    owner = tl.load(owners + program)
    parameter = tl.load(addresses + 4 * owner).to(tl.pointer_type(tl.float32))
    history = tl.load(addresses + 4 * owner + 1).to(tl.pointer_type(tl.float32))
    lr_mult = tl.load(settings + 2 * owner)
    decay = tl.load(settings + 2 * owner + 1)
    places = tl.load(starts + program) + tl.arange(0, BLOCK)
    inside = places < tl.load(counts + owner)
    w = tl.load(parameter + places, mask=inside)
    g = _gradient(addresses, owner, places, inside)
    if CLIP:
        length = tl.load(norm)
        if length > limit:
            g *= limit / length
    before = tl.load(history + places, mask=inside)
    if L1:
        g += decay * ((w > 0).to(tl.float32) - (w < 0).to(tl.float32))
    else:
        g += decay * w
    after = momentum * before + tl.load(rate) * lr_mult * g
    tl.store(history + places, after, mask=inside)
    step = after
    if NESTEROV:
        step = (1 + momentum) * after - momentum * before
    tl.store(parameter + places, w - step, mask=inside)


class SGDKernel:
    """Updates `parameters` and their `histories`, float32 tensors on one GPU, in place.

    `lr_mults` and `decays` have a number for each parameter. With `clip`, gradients are scaled
    down to this norm where theirs is larger; `norm` has the last one, a 0-dim tensor.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        histories: Sequence[Tensor],
        lr_mults: Sequence[float],
        decays: Sequence[float],
        *,
        momentum: float,
        l1: bool = False,
        nesterov: bool = False,
        clip: float | None = None,
    ) -> None:
        self._parameters, self._histories = parameters, histories
        self._momentum, self._l1, self._nesterov = momentum, l1, nesterov
        self._clip = clip
        self.norm: Tensor | None = None
        device = parameters[0].device
        self._blocks = Blocks(parameters, BLOCK)
        self._settings = torch.tensor(
            [*zip(lr_mults, decays, strict=True)], dtype=torch.float32, device=device
        )
        #: Where each parameter, its history and its gradient lie, and whether the latter is of
        #: bfloat16, for the next launch. A table made inside a capture would share its memory with
        #: what the graph computes before.
        self._table = torch.empty(len(parameters), 4, dtype=torch.int64, device=device)
        #: The contents of the table of a captured launch, still to be written.
        self._unwritten: Tensor | None = None
        #: Tables that captured launches read.
        self._captured: list[Tensor] = []

    def run(self, gradients: Sequence[Tensor], rate: Tensor) -> None:
        """One update. `rate` is a 0-dim tensor; gradients may be of bfloat16.

        After a capture with this in it, call `write_table` before the first replay.
        """
        gradients = [
            gradient if _is_read(gradient, parameter) else laid_out_as(parameter, gradient)
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]
        rows = [
            [*(tensor.data_ptr() for tensor in row), row[-1].dtype == torch.bfloat16]
            for row in zip(self._parameters, self._histories, gradients, strict=True)
        ]
        addresses = torch.tensor(rows)
        if is_capturing(rate):
            self._unwritten = addresses
        else:
            self._table.copy_(addresses)
        if self._clip is not None:
            self.norm = self._find_norm()
        _update[(self._blocks.programs,)](
            self._table,
            self._blocks.counts,
            self._settings,
            self._blocks.owners,
            self._blocks.starts,
            rate,
            self._momentum,
            self.norm,
            self._clip,
            L1=self._l1,
            NESTEROV=self._nesterov,
            CLIP=self._clip is not None,
            BLOCK=BLOCK,
        )

    def _find_norm(self) -> Tensor:
        """That of all gradients in the table."""
        blocks = self._blocks
        norms = self._settings.new_empty(blocks.programs)
        _norms[(blocks.programs,)](
            self._table, blocks.counts, blocks.owners, blocks.starts, norms, BLOCK=BLOCK
        )
        return torch.linalg.vector_norm(norms)

    def write_table(self) -> None:
        """Give the launch that was captured last the addresses that it will use."""
        if self._unwritten is not None:
            self._table.copy_(self._unwritten)
            self._captured.append(self._table)
            self._table, self._unwritten = torch.empty_like(self._table), None


def _is_read(gradient: Tensor, parameter: Tensor) -> bool:
    """Whether the kernel reads a gradient as it is."""
    return gradient.dtype == torch.bfloat16 and gradient.stride() == parameter.stride()
