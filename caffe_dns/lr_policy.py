"""Learning rate policies: the rate by iteration (`SGDSolver::GetLearningRate`)."""

from __future__ import annotations

import math
from collections.abc import Callable

from caffe_dns.errors import CaffeError, nearest
from caffe_dns.proto.caffe_pb2 import SolverParameter

#: Policies that look at these settings; a missing one reads as 0, as in Caffe.
_USE_GAMMA = ("step", "exp", "inv", "multistep", "sigmoid")
_USE_STEPSIZE = ("step", "sigmoid")


def check_policy(param: SolverParameter) -> None:
    """Raise CaffeError for an unknown policy and for settings that it cannot work with."""
    policy = param.lr_policy
    if policy not in _POLICIES:
        known = ", ".join(_POLICIES)
        raise CaffeError(
            f"unknown learning rate policy '{policy}'{nearest(policy, list(_POLICIES))}; "
            f"known: {known}",
            field="lr_policy",
        )
    if policy in _USE_GAMMA and param.gamma < 0:
        raise CaffeError(
            f"lr_policy '{policy}' needs a value of at least 0, not {param.gamma:g}", field="gamma"
        )
    if policy in _USE_STEPSIZE and param.stepsize <= 0:
        raise CaffeError(
            f"lr_policy '{policy}' needs a positive value, not {param.stepsize}", field="stepsize"
        )


def learning_rate(param: SolverParameter, iteration: int, current_step: int) -> float:
    """The rate at `iteration`; `current_step` is the number of multistep values passed."""
    return _POLICIES[param.lr_policy](param, iteration, current_step)


def next_step(param: SolverParameter, iteration: int, current_step: int) -> int:
    """The number of steps passed at this iteration, which the solver state keeps.

    That of the multistep policy moves by at most one an iteration.
    """
    if param.lr_policy == "step":
        return int(iteration // param.stepsize)
    if (
        param.lr_policy == "multistep"
        and current_step < len(param.stepvalue)
        and iteration >= param.stepvalue[current_step]
    ):
        return current_step + 1
    return current_step


def _fixed(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr


def _step(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr * param.gamma**current_step


def _exp(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr * param.gamma**iteration


def _inv(param: SolverParameter, iteration: int, current_step: int) -> float:
    return float(param.base_lr * (1 + param.gamma * iteration) ** -param.power)


def _multistep(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr * param.gamma**current_step


def _poly(param: SolverParameter, iteration: int, current_step: int) -> float:
    remaining = max(1.0 - iteration / param.max_iter, 0.0) if param.max_iter else 0.0
    return float(param.base_lr * remaining**param.power)


def _sigmoid(param: SolverParameter, iteration: int, current_step: int) -> float:
    # Written so that a large exponent cannot overflow.
    exponent = param.gamma * (iteration - param.stepsize)
    if exponent < 0:
        grown = math.exp(exponent)
        return param.base_lr * grown / (1.0 + grown)
    return param.base_lr / (1.0 + math.exp(-exponent))


_POLICIES: dict[str, Callable[[SolverParameter, int, int], float]] = {
    "fixed": _fixed,
    "step": _step,
    "exp": _exp,
    "inv": _inv,
    "multistep": _multistep,
    "poly": _poly,
    "sigmoid": _sigmoid,
}
