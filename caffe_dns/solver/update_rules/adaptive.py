"""Rules that scale each gradient by a history of its square."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.net.params import Param
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.solver.update_rules.base import Tensors, UpdateRule, solver_types


class Adaptive(UpdateRule):
    """Rules that keep squares of gradients, and no momentum."""

    def _check(self, param: SolverParameter) -> None:
        super()._check(param)
        if param.momentum != 0:
            raise CaffeError(
                f"momentum cannot be used with {param.type}; leave it out", field="momentum"
            )

    def scaled(self, gradients: Tensors, squares: Tensors, rate: Tensor) -> Tensors:
        """rate * g / (sqrt(squares) + delta)."""
        below = torch._foreach_sqrt(squares)
        torch._foreach_add_(below, self.param.delta)
        torch._foreach_div_(gradients, below)
        torch._foreach_mul_(gradients, rate)
        return gradients


@solver_types.register("AdaGrad")
class AdaGrad(Adaptive):
    """h = h + g^2 (`adagrad_solver.cpp`)."""

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        torch._foreach_addcmul_(histories[0], gradients, gradients)
        return self.scaled(gradients, histories[0], rate)


@solver_types.register("RMSProp")
class RMSProp(Adaptive):
    """h = rms_decay * h + (1 - rms_decay) * g^2 (`rmsprop_solver.cpp`)."""

    def _check(self, param: SolverParameter) -> None:
        super()._check(param)
        if not 0 <= param.rms_decay < 1:
            raise CaffeError(f"must lie in [0, 1), not {param.rms_decay:g}", field="rms_decay")

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        _decay_squares(histories[0], gradients, self.param.rms_decay)
        return self.scaled(gradients, histories[0], rate)


@solver_types.register("AdaDelta")
class AdaDelta(UpdateRule):
    """Histories of squared gradients and of squared updates (`adadelta_solver.cpp`)."""

    num_histories = 2

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        squares, updates = histories
        momentum, delta = self.param.momentum, self.param.delta
        _decay_squares(squares, gradients, momentum)
        ratio = torch._foreach_add(updates, delta)
        torch._foreach_div_(ratio, torch._foreach_add(squares, delta))
        torch._foreach_sqrt_(ratio)
        torch._foreach_mul_(gradients, ratio)
        _decay_squares(updates, gradients, momentum)
        torch._foreach_mul_(gradients, rate)
        return gradients


@solver_types.register("Adam")
class Adam(UpdateRule):
    """First and second moments, corrected for their start at 0 (`adam_solver.cpp`)."""

    num_histories = 2

    def __init__(self, param: SolverParameter, params: Sequence[Param]) -> None:
        super().__init__(param, params)
        #: sqrt(1 - beta2^t) / (1 - beta1^t) of the next update.
        self.correction = torch.ones((), device=self.rate.device)

    def _check(self, param: SolverParameter) -> None:
        super()._check(param)
        for field in ("momentum", "momentum2"):
            if not 0 <= (value := getattr(param, field)) < 1:
                raise CaffeError(f"must lie in [0, 1), not {value:g}", field=field)

    def begin(self, iteration: int, rate: float) -> None:
        super().begin(iteration, rate)
        step = iteration + 1
        first = 1.0 - self.param.momentum**step
        second = 1.0 - self.param.momentum2**step
        self.correction.fill_(second**0.5 / first)

    def set_apart(self, param: Param, part: Callable[[Tensor], Tensor]) -> UpdateRule:
        own = super().set_apart(param, part)
        assert isinstance(own, Adam)
        own.correction = self.correction
        return own

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        means, squares = histories
        torch._foreach_mul_(means, self.param.momentum)
        torch._foreach_add_(means, gradients, alpha=1 - self.param.momentum)
        _decay_squares(squares, gradients, self.param.momentum2)
        below = torch._foreach_sqrt(squares)
        torch._foreach_add_(below, self.param.delta)
        result = torch._foreach_div(means, below)
        torch._foreach_mul_(result, rate * self.correction)
        return list(result)


def _decay_squares(squares: Tensors, values: Tensors, decay: float) -> None:
    """squares = decay * squares + (1 - decay) * values^2, in place."""
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, values, values, value=1 - decay)
