"""Mask rules and schedules against Caffe's loops, restated entry by entry in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns import mask_rules

SHAPES = [(7,), (6, 11), (5, 3, 4, 2), (4, 1, 5, 5)]


def draw(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# The straight-through product ---------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_masked_multiplies_and_hands_all_of_the_gradient_on(shape: tuple[int, ...]) -> None:
    weight = draw(shape).requires_grad_()
    mask = (draw(shape, 1) > 0).double()
    result = mask_rules.masked(weight, mask)
    assert torch.equal(result, weight.detach() * mask)
    gradient = draw(shape, 2)
    result.backward(gradient)
    assert weight.grad is not None
    assert torch.equal(weight.grad, gradient)
    assert 0 < int(mask.sum()) < mask.numel()


def test_masked_keeps_the_memory_format() -> None:
    weight = draw((4, 1, 5, 5)).to(memory_format=torch.channels_last)
    mask = torch.ones(4, 1, 5, 5, dtype=torch.float64)
    assert mask_rules.masked(weight, mask).stride() == weight.stride()


# By standard deviation ----------------------------------------------------------------------------


def deviation_mask(weight: np.ndarray, threshold: float) -> np.ndarray:
    """`MaskGenerator` of the fork's `conv_layer.cu`."""
    mean = weight.mean()
    deviation = math.sqrt(((weight - mean) ** 2).mean())
    upper, lower = mean + threshold * deviation, mean - threshold * deviation
    return np.array(
        [(0.0 if w < upper else 1.0) if w > lower else 1.0 for w in weight.ravel()]
    ).reshape(weight.shape)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("threshold", [0, 0.3, 0.6, 1.281, 5, -0.5])
@pytest.mark.parametrize("shift", [0, 2.5])
def test_deviation_mask(shape: tuple[int, ...], threshold: float, shift: float) -> None:
    weight = draw(shape) + shift
    expected = deviation_mask(weight.numpy(), threshold)
    assert np.array_equal(mask_rules.deviation_mask(weight, threshold), expected)


@pytest.mark.parametrize(
    ("threshold", "sparsity"),
    [(0.674, 0.5), (0.994, 0.68), (1.281, 0.8), (1.644, 0.9), (1.959, 0.95)],
)
def test_sparsity_of_normal_weights(threshold: float, sparsity: float) -> None:
    weight = draw((500, 400), dtype=torch.float32) * 0.02
    pruned = 1 - mask_rules.deviation_mask(weight, threshold).mean()
    assert float(pruned) == pytest.approx(sparsity, abs=0.003)


def test_deviation_mask_leaves_the_weight_alone() -> None:
    weight = draw((6, 11), dtype=torch.float32)
    before = weight.clone()
    mask = mask_rules.deviation_mask(weight, 0.6)
    assert torch.equal(weight, before)
    assert mask.dtype == torch.float32
    assert set(mask.unique().tolist()) == {0.0, 1.0}


# By magnitude -------------------------------------------------------------------------------------


def magnitude_moments(parameters: list[np.ndarray]) -> tuple[float, float]:
    """The sums of `compress_conv_layer.cpp`."""
    mu, squares, count = 0.0, 0.0, 0
    for value in np.concatenate([parameter.ravel() for parameter in parameters]):
        mu += abs(value)
        squares += value * value
        count += value != 0
    mu /= count
    return mu, math.sqrt((squares - count * mu * mu) / count)


def test_magnitude_moments_are_those_of_what_is_not_zero() -> None:
    weight, bias = draw((6, 11)), draw((6,), 1)
    weight[weight.abs() < 0.5] = 0
    found = mask_rules.magnitude_moments([weight, bias]).tolist()
    assert found == pytest.approx(magnitude_moments([weight.numpy(), bias.numpy()]), rel=1e-12)


def test_magnitude_moments_of_nothing() -> None:
    assert mask_rules.magnitude_moments([torch.zeros(3, 4), torch.zeros(3)]).tolist() == [0, 0]
    assert mask_rules.magnitude_moments([torch.full((5,), -2.0)]).tolist() == [2, 0]


def hysteresis_mask(
    parameter: np.ndarray, mask: np.ndarray, mu: float, sigma: float, c_rate: float
) -> np.ndarray:
    """The loop of `compress_conv_layer.cpp`."""
    result = mask.copy()
    threshold = max(mu + c_rate * sigma, 0)
    for index, value in np.ndenumerate(parameter):
        if mask[index] == 1 and abs(value) <= 0.9 * threshold:
            result[index] = 0
        elif mask[index] == 0 and abs(value) > 1.1 * threshold:
            result[index] = 1
    return result


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("c_rate", [0, 0.5, 2, -1, -5])
def test_hysteresis_mask(shape: tuple[int, ...], c_rate: float) -> None:
    parameter, mask = draw(shape), (draw(shape, 1) > 0).double()
    moments = mask_rules.magnitude_moments([parameter])
    mu, sigma = moments.tolist()
    expected = hysteresis_mask(parameter.numpy(), mask.numpy(), mu, sigma, c_rate)
    found = mask_rules.hysteresis_mask(parameter, mask, moments, c_rate)
    assert np.array_equal(found, expected)
    # What was decided stays decided, so renewing once an iteration is as good as iter_size times.
    assert torch.equal(mask_rules.hysteresis_mask(parameter, found, moments, c_rate), found)


def test_what_lies_between_keeps_its_state() -> None:
    moments = torch.tensor([0.75, 0.25])
    sizes = [0.89, 0.91, -1.09, 1.11, -1.11, 0.0]
    parameter = torch.tensor(sizes)
    kept = mask_rules.hysteresis_mask(parameter, torch.ones(6), moments, 1)
    back = mask_rules.hysteresis_mask(parameter, torch.zeros(6), moments, 1)
    assert kept.tolist() == [0, 1, 1, 1, 1, 0]
    assert back.tolist() == [0, 0, 0, 1, 1, 0]


def test_replacing_a_mask_counts_what_came_back() -> None:
    mask = torch.tensor([1.0, 1, 0, 0, 0])
    renewed = torch.tensor([1.0, 0, 1, 1, 0])
    came_back = mask_rules.replace(mask, renewed)
    assert came_back.dtype == torch.int64
    assert int(came_back) == 2
    assert mask.tolist() == renewed.tolist() == [1, 0, 1, 1, 0]


# When ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("iteration", "gamma", "power"),
    [(0, 1e-4, 1), (10_000, 1e-4, 1), (500, 0.01, 0.5), (77, 0.3, 0), (0, 0, 3)],
)
def test_probability(iteration: int, gamma: float, power: float) -> None:
    expected = 1 / (1 + gamma * iteration) ** power
    assert mask_rules.probability(iteration, gamma, power) == pytest.approx(expected, rel=1e-12)


def frequency(**settings: float | int | str) -> float:
    """How often surgery happens over many seeds at iteration 3000 with probability 1/4."""
    count = 4000
    happened = [
        mask_rules.happens(seed, "s", 3000, gamma=1e-3, power=1, **settings)  # type: ignore[arg-type]
        for seed in range(count)
    ]
    return sum(happened) / count


def test_surgery_happens_as_often_as_it_should() -> None:
    assert frequency() == pytest.approx(0.25, abs=0.03)  # 4 standard deviations


def test_several_draws_give_several_chances() -> None:
    assert frequency(draws=3) == pytest.approx(1 - 0.75**3, abs=0.03)


def test_draws_are_those_of_seed_stream_and_iteration() -> None:
    def draws(seed: int, stream: str) -> list[bool]:
        return [
            mask_rules.happens(seed, stream, iteration, gamma=1e-2, power=1)
            for iteration in range(100, 200)
        ]

    assert draws(1, "a") == draws(1, "a")
    assert draws(1, "a") != draws(2, "a")
    assert draws(1, "a") != draws(1, "b")


@pytest.mark.parametrize("iteration", [0, 1, 10**6])
def test_power_zero_means_always(iteration: int) -> None:
    assert all(mask_rules.happens(seed, "s", iteration, gamma=1e-4, power=0) for seed in range(100))


@pytest.mark.parametrize(("gamma", "power", "always"), [(1, -1e9, True), (-1, 0.5, False)])
def test_probabilities_beyond_numbers(gamma: float, power: float, always: bool) -> None:
    """Infinite, and none at all: the root of a negative number."""
    happened = [mask_rules.happens(seed, "s", 5, gamma=gamma, power=power) for seed in range(100)]
    assert happened == [always] * 100


def test_nothing_happens_where_the_probability_is_nothing() -> None:
    assert not any(mask_rules.happens(seed, "s", 10**6, gamma=1, power=20) for seed in range(100))
