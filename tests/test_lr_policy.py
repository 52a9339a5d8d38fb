"""Learning rates against the formulas of `SGDSolver::GetLearningRate`."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.lr_policy import check_policy, learning_rate, next_step, power
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import parse_text

ITERATIONS = [0, 1, 7, 99, 100, 250, 999, 1000]


def parse(text: str) -> SolverParameter:
    param: SolverParameter = parse_text(text, SolverParameter).message
    return param


def rates(text: str, iterations: int) -> list[float]:
    """The rate at each of so many iterations, from the first one on."""
    param, current = parse(text), 0
    check_policy(param)
    found = []
    for iteration in range(iterations):
        current = next_step(param, iteration, current)
        found.append(learning_rate(param, iteration, current))
    return found


@pytest.mark.parametrize(
    ("text", "formula"),
    [
        ("lr_policy: 'fixed'", lambda i: 0.5),
        ("lr_policy: 'step' gamma: 0.5 stepsize: 100", lambda i: 0.5 * 0.5 ** (i // 100)),
        ("lr_policy: 'exp' gamma: 0.99", lambda i: 0.5 * 0.99**i),
        ("lr_policy: 'inv' gamma: 0.01 power: 0.75", lambda i: 0.5 * (1 + 0.01 * i) ** -0.75),
        ("lr_policy: 'poly' max_iter: 1000 power: 2", lambda i: 0.5 * (1 - i / 1000) ** 2),
        ("lr_policy: 'poly' max_iter: 1000", lambda i: 0.5),
        (
            "lr_policy: 'poly' max_iter: 1000 power: 2 min_lr: 0.125",
            lambda i: 0.125 + 0.375 * (1 - i / 1000) ** 2,
        ),
        (
            "lr_policy: 'cosine' max_iter: 1000 min_lr: 0.125",
            lambda i: 0.125 + 0.375 * (1 + math.cos(math.pi * i / 1000)) / 2,
        ),
        (
            "lr_policy: 'multifixed' stagelr: 1 stagelr: 0.5 stageiter: 99 stageiter: 250",
            lambda i: 1 if i <= 99 else 0.5,
        ),
        ("lr_policy: 'exp' gamma: 0.99 min_lr: 0.25", lambda i: max(0.5 * 0.99**i, 0.25)),
        (
            "lr_policy: 'step' gamma: 0.5 stepsize: 100 warmup_iter: 200 warmup_start_lr: 0.25",
            lambda i: 0.25 + 0.25 * i / 200 if i < 200 else 0.5 * 0.5 ** (i // 100),
        ),
        (
            "lr_policy: 'fixed' rampup_interval: 200 rampup_lr: 0.25",
            lambda i: 0.25 + 0.25 * (i / 200) ** 2 if i < 200 else 0.5,
        ),
        ("lr_policy: 'fixed' rampup_interval: 200", lambda i: 0.5 * min(i / 200, 1) ** 2),
        (
            "lr_policy: 'sigmoid' gamma: 0.02 stepsize: 250",
            lambda i: 0.5 / (1 + math.exp(-0.02 * (i - 250))),
        ),
        (
            "lr_policy: 'multistep' gamma: 0.1 stepvalue: 100 stepvalue: 250 stepvalue: 5000",
            lambda i: 0.5 * 0.1 ** ((i >= 100) + (i >= 250)),
        ),
    ],
)
def test_policy(text: str, formula: Callable[[int], float]) -> None:
    found = rates(f"base_lr: 0.5 {text}", 1001)
    for iteration in ITERATIONS:
        assert found[iteration] == pytest.approx(formula(iteration), rel=1e-5, abs=1e-12)


def test_settings_left_out_read_as_zero() -> None:
    assert rates("base_lr: 0.5 lr_policy: 'inv'", 3) == [0.5] * 3
    assert rates("base_lr: 0.5 lr_policy: 'exp'", 3) == [0.5, 0, 0]
    assert rates("base_lr: 0.5 lr_policy: 'multistep'", 3) == [0.5] * 3


def test_multistep_moves_by_one_step_an_iteration() -> None:
    text = "base_lr: 1 lr_policy: 'multistep' gamma: 0.5 stepvalue: 3 stepvalue: 3 stepvalue: 3"
    assert rates(text, 8) == [1, 1, 1, 0.5, 0.25, 0.125, 0.125, 0.125]
    param = parse(text)
    # A state that was saved with fewer steps catches up one by one.
    assert [next_step(param, 100, current) for current in range(4)] == [1, 2, 3, 3]


def test_multistep_catches_up_after_the_warm_up() -> None:
    text = "base_lr: 8 lr_policy: 'multistep' gamma: 0.5 stepvalue: 1 stepvalue: 2 warmup_iter: 4"
    assert rates(text, 7) == [0, 2, 4, 6, 4, 2, 2]


def test_the_step_policy_finds_its_step_by_itself() -> None:
    param = parse("lr_policy: 'step' stepsize: 10")
    assert [next_step(param, iteration, 77) for iteration in (0, 9, 10, 35)] == [0, 0, 1, 3]


def test_poly_ends_at_zero() -> None:
    param = parse("base_lr: 1 lr_policy: 'poly' power: 0.5 max_iter: 10")
    assert learning_rate(param, 10, 0) == learning_rate(param, 12, 0) == 0
    assert learning_rate(parse("base_lr: 1 lr_policy: 'poly' power: 1"), 5, 0) == 0


@pytest.mark.parametrize(("iteration", "wanted"), [(0, 0.0), (10**6, 2.0)])
def test_sigmoid_does_not_overflow(iteration: int, wanted: float) -> None:
    param = parse("base_lr: 2 lr_policy: 'sigmoid' gamma: 5 stepsize: 1000")
    assert learning_rate(param, iteration, 0) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "iteration", "wanted"),
    [
        ("lr_policy: 'exp' gamma: 10", 38, 1e38),
        ("lr_policy: 'exp' gamma: 10", 39, math.inf),
        ("lr_policy: 'exp' gamma: 10", 400, math.inf),
        ("lr_policy: 'step' gamma: 3e38 stepsize: 1", 2, math.inf),
        ("lr_policy: 'inv' gamma: 1e30 power: -20", 1, math.inf),
        ("lr_policy: 'poly' power: -1 max_iter: 5", 5, math.inf),
    ],
)
def test_what_32_bits_do_not_hold_is_infinite(text: str, iteration: int, wanted: float) -> None:
    assert rates(f"base_lr: 1 {text}", iteration + 1)[-1] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr_policy: 'steps'", "lr_policy: unknown learning rate policy 'steps' (did you mean 'st"),
        ("", "lr_policy: must be given; known: fixed, step"),
        ("lr_policy: 'step'", "stepsize: lr_policy 'step' needs a positive value, not 0"),
        ("lr_policy: 'sigmoid' stepsize: -1", "stepsize: lr_policy 'sigmoid' needs a positive"),
        ("lr_policy: 'fixed' warmup_iter: -1", "warmup_iter: must be at least 0, not -1"),
        ("lr_policy: 'fixed' min_lr: -0.5", "min_lr: must be at least 0, not -0.5"),
        (
            "lr_policy: 'fixed' warmup_iter: 5 rampup_interval: 5",
            "rampup_interval: give either this or warmup_iter, not both",
        ),
        (
            "lr_policy: 'multifixed' stagelr: 1",
            "stagelr: lr_policy 'multifixed' needs as many stagelr as stageiter, and at least one; "
            "there are 1 and 0",
        ),
        ("lr_policy: 'exp' gamma: -0.5", "gamma: lr_policy 'exp' needs a value of at least 0, not"),
    ],
)
def test_policies_that_cannot_be(text: str, message: str) -> None:
    with pytest.raises(CaffeError) as caught:
        check_policy(parse(text))
    assert message in str(caught.value)


@pytest.mark.parametrize("base", [0.0, 0.5, 1.01, 10.0, -0.5, -2.0, 3e38])
@pytest.mark.parametrize(
    "exponent", [0.0, 2.0, 0.75, -0.75, -1.0, 2147483647.0, -2147483648.0, 3e38]
)
def test_powers_are_those_of_c(base: float, exponent: float) -> None:
    with np.errstate(all="ignore"):
        expected = np.float64(base) ** np.float64(exponent)
    np.testing.assert_allclose(power(base, exponent), expected, rtol=1e-15)
