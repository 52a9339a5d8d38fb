"""K-means in one dimension, by an exhaustive search and by hand."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from caffe_dns.surgery.shared_values import find_values, nearest, rounded


def least_error(ordered: np.ndarray, count: int) -> float:
    """The smallest sum of squared differences with `count` values: over all ways to cut."""
    best = np.inf
    for cuts in combinations(range(1, len(ordered)), count - 1):
        parts = np.split(ordered, cuts)
        best = min(best, sum(((part - part.mean()) ** 2).sum() for part in parts))
    return float(best)


@pytest.mark.parametrize("seed", range(5))
def test_close_to_the_best(seed: int) -> None:
    entries = np.random.default_rng(seed).standard_normal(14)
    values = find_values(entries, 3).astype(np.float64)
    error = ((values[nearest(values, entries)] - entries) ** 2).sum()
    # Lloyd's rounds end in a local optimum.
    assert error <= 1.3 * least_error(np.sort(entries), 3) + 1e-3


@pytest.mark.parametrize(("count", "bits"), [(2, 4), (4, 5), (8, 6), (7, 6), (256, 11)])
def test_significant_bits(count: int, bits: int) -> None:
    values = np.random.default_rng(count).standard_normal(500).astype(np.float32)
    fraction, exponent = np.frexp(values.astype(np.float64))
    expected = np.ldexp(np.round(fraction * 2**bits), exponent - bits)
    assert rounded(values, count).tolist() == expected.tolist()
    assert rounded(torch.from_numpy(values), count).tolist() == expected.tolist()


def test_found_values_are_rounded() -> None:
    entries = np.random.default_rng(3).standard_normal(500)
    values = find_values(entries, 8).astype(np.float32)
    assert len(values) == 8
    assert values.tolist() == rounded(values, 8).tolist()


def test_values_that_are_few_already_stay() -> None:
    entries = np.array([0.5, -1.0, 0.5, 2.0])
    assert find_values(entries, 4).tolist() == [-1.0, 0.5, 2.0]
    assert find_values(entries, 4).dtype == np.float16


def test_values_of_groups_far_apart() -> None:
    entries = np.array([1.0, 1.25, -4.0, -4.5, 100.0, 1e30])
    assert find_values(entries, 4).tolist() == [-4.25, 1.125, 100.0, 65504.0]
    assert nearest(np.array([-1.0, 1.0]), np.array([-9.0, -0.1, 0.1, 9.0])).tolist() == [0, 0, 1, 1]
