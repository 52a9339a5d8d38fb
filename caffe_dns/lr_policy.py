"""Learning rate policies: the rate by iteration (`SGDSolver::GetLearningRate`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from caffe_dns.errors import CaffeError
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.registry import Registry

Rate = Callable[[SolverParameter, int, int], float]

#: The largest value of Caffe's rates, which have 32 bits.
_LARGEST = (2 - 2**-23) * 2.0**127


@dataclass(frozen=True)
class RatePolicy:
    """A rate as a function of (solver, iteration, current step), and the fields that it reads.

    Missing settings are 0, as in Caffe.
    """

    rate: Rate
    not_negative: tuple[str, ...] = ()
    positive: tuple[str, ...] = ()

    def check(self, param: SolverParameter) -> None:
        """Raise CaffeError for an invalid setting of the policy."""
        for field in self.not_negative:
            if (value := getattr(param, field)) < 0:
                raise CaffeError(
                    f"lr_policy '{param.lr_policy}' needs a value of at least 0, not {value:g}",
                    field=field,
                )
        for field in self.positive:
            if (value := getattr(param, field)) <= 0:
                raise CaffeError(
                    f"lr_policy '{param.lr_policy}' needs a positive value, not {value:g}",
                    field=field,
                )


rate_policies: Registry[RatePolicy] = Registry("learning rate policy", by_name=False)


def rate_policy(
    name: str, *, not_negative: tuple[str, ...] = (), positive: tuple[str, ...] = ()
) -> Callable[[Rate], Rate]:
    """Decorator: register a function as the policy `name`, with the fields that it reads."""

    def enter(rate: Rate) -> Rate:
        rate_policies.add(name, RatePolicy(rate, not_negative, positive))
        return rate

    return enter


def check_policy(param: SolverParameter) -> None:
    """Raise CaffeError for an unknown policy and for invalid settings."""
    if not param.lr_policy:
        raise CaffeError(f"must be given; known: {', '.join(rate_policies)}", field="lr_policy")
    try:
        policy = rate_policies[param.lr_policy]
    except CaffeError as error:
        raise error.locate(field="lr_policy") from None
    policy.check(param)
    for field in ("warmup_iter", "rampup_interval", "min_lr"):
        if (value := getattr(param, field)) < 0:
            raise CaffeError(f"must be at least 0, not {value:g}", field=field)
    if param.lr_policy == "multifixed" and (
        not param.stagelr or len(param.stagelr) != len(param.stageiter)
    ):
        raise CaffeError(
            f"lr_policy 'multifixed' needs as many stagelr as stageiter, and at least one; there "
            f"are {len(param.stagelr)} and {len(param.stageiter)}",
            field="stagelr",
        )
    if param.warmup_iter and param.rampup_interval:
        raise CaffeError("give either this or warmup_iter, not both", field="rampup_interval")


def learning_rate(param: SolverParameter, iteration: int, current_step: int) -> float:
    """The rate at `iteration`; `current_step` is the number of multistep values passed.

    At the beginning it may rise to base_lr, linearly over warmup_iter (Intel Caffe) or in a
    parabola over rampup_interval (NVCaffe). It does not fall below min_lr. Values beyond 32 bits
    are infinite.
    """
    if iteration < param.warmup_iter:
        return _between(param.warmup_start_lr, param.base_lr, iteration / param.warmup_iter)
    if iteration < param.rampup_interval:
        share = (iteration / param.rampup_interval) ** 2
        rate = _between(param.rampup_lr, param.base_lr, share)
    else:
        rate = rate_policies[param.lr_policy].rate(param, iteration, current_step)
    rate = max(rate, param.min_lr) if param.HasField("min_lr") else rate
    return math.copysign(math.inf, rate) if abs(rate) > _LARGEST else rate


def power(base: float, exponent: float) -> float:
    """`base` to the power of `exponent` as by C's `pow`, with infinity or NaN for errors."""
    try:
        return math.pow(base, exponent)
    except OverflowError:
        return -math.inf if base < 0 and exponent % 2 == 1 else math.inf
    except ValueError:  # zero to a negative power, or a root of a negative number
        return math.inf if base == 0 else math.nan


def _between(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def next_step(param: SolverParameter, iteration: int, current_step: int) -> int:
    """The number of steps passed at this iteration, which the solver state keeps.

    The multistep policy's number grows by at most one per iteration, and not during warm-up.
    """
    if iteration < max(param.warmup_iter, param.rampup_interval):
        return current_step
    if param.lr_policy == "step":
        return int(iteration // param.stepsize)
    if (
        param.lr_policy == "multistep"
        and current_step < len(param.stepvalue)
        and iteration >= param.stepvalue[current_step]
    ):
        return current_step + 1
    return current_step


@rate_policy("fixed")
def _fixed(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr


@rate_policy("step", not_negative=("gamma",), positive=("stepsize",))
def _step(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr * power(param.gamma, current_step)


@rate_policy("exp", not_negative=("gamma",))
def _exp(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr * power(param.gamma, iteration)


@rate_policy("inv", not_negative=("gamma",))
def _inv(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr * power(1 + param.gamma * iteration, -param.power)


@rate_policy("multistep", not_negative=("gamma",))
def _multistep(param: SolverParameter, iteration: int, current_step: int) -> float:
    return param.base_lr * power(param.gamma, current_step)


@rate_policy("poly")
def _poly(param: SolverParameter, iteration: int, current_step: int) -> float:
    remaining = max(1.0 - iteration / param.max_iter, 0.0) if param.max_iter else 0.0
    return _between(param.min_lr, param.base_lr, power(remaining, param.power))


@rate_policy("sigmoid", not_negative=("gamma",), positive=("stepsize",))
def _sigmoid(param: SolverParameter, iteration: int, current_step: int) -> float:
    # Written so that a large exponent cannot overflow.
    exponent = param.gamma * (iteration - param.stepsize)
    if exponent < 0:
        grown = math.exp(exponent)
        return param.base_lr * grown / (1.0 + grown)
    return param.base_lr / (1.0 + math.exp(-exponent))


@rate_policy("multifixed")
def _multifixed(param: SolverParameter, iteration: int, current_step: int) -> float:
    stages = zip(param.stagelr, param.stageiter, strict=True)
    return next((rate for rate, last in stages if iteration <= last), param.stagelr[-1])


@rate_policy("cosine")
def _cosine(param: SolverParameter, iteration: int, current_step: int) -> float:
    passed = min(iteration / param.max_iter, 1.0) if param.max_iter else 1.0
    share = (1 + math.cos(math.pi * passed)) / 2
    return _between(param.min_lr, param.base_lr, share)
