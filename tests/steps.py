"""One iteration of a recorded run at a time: as production computes it, and rounded once.

`take_step` gives everything that an iteration leaves. Where it rests on a choice that the last
place may decide, the second computation follows the first: `Winners` has it take the same value
from each pooling window, after checking that no other was larger by more than rounding, and the
update starts from the same gradients. What is left to differ is rounding, which no choice makes
grow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from caffe_dns.solver.observers import Display, Observer
from caffe_dns.solver.solver import Solver

#: By how much of the largest number of its plane the value taken from a window may be too small.
TIE = 1e-6


@dataclass
class Step:
    """What one iteration computed. Lists are in the order of the update rule's parameters."""

    loss: float
    #: As backward left them: not clipped, not divided by iter_size.
    gradients: list[Tensor]
    histories: list[Tensor]
    before: list[Tensor]
    after: list[Tensor]
    masks: list[Tensor]
    #: What each max pooling took from its windows, one pass after the other.
    winners: list[Tensor]


class Winners(TorchDispatchMode):
    """Notes which value max pooling takes from each window, or has it take those noted before."""

    def __init__(self, noted: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.taken: list[Tensor] = []
        self._noted = None if noted is None else iter(noted)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.max_pool2d_with_indices.default:
            return result
        top, index = result
        if self._noted is not None:
            index = next(self._noted)
            planes = args[0].contiguous().view(*top.shape[:2], -1)
            chosen = planes.gather(2, index.view(*top.shape[:2], -1)).view(top.shape)
            assert (top - chosen).max() <= TIE * args[0].abs().max(), "another value was larger"
            top = chosen
        self.taken.append(index)
        return top, index


def take_step(solver: Solver, like: Step | None = None) -> Step:
    """One iteration; with the winners of `like`, and an update from its gradients, if given.

    What it returns is on the CPU, whatever the solver's device.
    """
    rule = solver.rule
    gradients: list[Tensor] = []
    before = _copies(rule.tensors)

    def apply() -> None:
        for index, param in enumerate(rule.params):
            gradient = param.tensor.grad
            none = torch.zeros_like(rule.tensors[index])
            gradients.extend(_copies([none if gradient is None else gradient]))
            if like is not None:
                param.tensor.grad = like.gradients[index].clone()
        type(rule).apply(rule)

    seen = LastDisplay()
    solver.observers.append(seen)
    rule.apply = apply  # type: ignore[method-assign]
    try:
        with Winners(None if like is None else like.winners) as winners:
            solver.step(1)
    finally:
        del rule.apply
        solver.observers.remove(seen)
    return Step(
        seen.loss,
        gradients,
        [copy for moment in rule.histories for copy in _copies(moment)],
        before,
        _copies(rule.tensors),
        _copies([param.tensor for param in solver.net.learnable_params if param.is_mask]),
        _copies(winners.taken),
    )


def _copies(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [tensor.detach().to("cpu", copy=True).contiguous() for tensor in tensors]


class LastDisplay(Observer):
    """An observer that keeps the loss of the last display."""

    loss = float("nan")

    def displayed(self, display: Display) -> None:
        self.loss = display.loss

    def tested(self, iteration: int, index: int, scores: Mapping[str, Tensor]) -> None:
        """No test net is scored."""

    def close(self) -> None:
        """It holds nothing."""
