"""Patterns of masks, against plain loops over rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.errors import BadValue
from caffe_dns.surgery.patterns import from_rows, parse_pattern, to_rows
from tests.oracle import assert_close


@pytest.mark.parametrize("length", [3, 4, 8, 13])
@pytest.mark.parametrize(("most", "group"), [(2, 4), (1, 3), (4, 8)])
def test_at_most_so_many_of_a_group(length: int, most: int, group: int) -> None:
    strengths = torch.rand(5, length, dtype=torch.float64)
    strengths[1] = 0.5  # all alike
    found = parse_pattern(f"{most}:{group}").in_place(strengths)
    for row, own in zip(strengths.numpy(), found.numpy(), strict=True):
        for start in range(0, length, group):
            part = row[start : start + group]
            allowed = np.argsort(-part, kind="stable")[:most]
            expected = np.full(len(part), -np.inf)
            expected[allowed] = part[allowed]
            np.testing.assert_array_equal(own[start : start + group], expected)


@pytest.mark.parametrize("length", [3, 4, 8, 13])
def test_blocks_are_as_strong_as_their_mean_square(length: int) -> None:
    strengths = torch.rand(5, length, dtype=torch.float64)
    pattern = parse_pattern("1x4")
    starts = range(0, length, 4)
    expected = [
        [np.sqrt(np.mean(row[start : start + 4] ** 2)) for start in starts]
        for row in strengths.numpy()
    ]
    assert_close(pattern.distances(strengths), np.array(expected), "strengths")
    sizes = [len(range(start, min(start + 4, length))) for start in starts]
    assert pattern.sizes(strengths).tolist() == sizes
    units = torch.arange(5 * len(sizes)).view(5, -1)
    np.testing.assert_array_equal(
        pattern.weights(units, length), [np.repeat(row, sizes) for row in units.numpy()]
    )


@pytest.mark.parametrize(
    ("shape", "axis", "place"),
    [
        # What stands in row 1 at column 5, by the order kh, kw, C of columns.
        ((2, 6), 1, (1, 5)),
        ((6, 2), 0, (5, 1)),
        ((2, 3, 2, 2), 1, (1, 2, 0, 1)),
        ((3, 2, 2, 2), 0, (2, 1, 0, 1)),
    ],
)
def test_inputs_lie_innermost(shape: tuple[int, ...], axis: int, place: tuple[int, ...]) -> None:
    weight = torch.arange(int(np.prod(shape))).view(shape)
    rows = to_rows(weight, axis)
    assert rows[1, 5] == weight[place]
    assert torch.equal(from_rows(rows, weight, axis), weight)


@pytest.mark.parametrize(
    "text", ["", "4:2", "4:4", "0:4", "1x1", "2x4", "2:4 ", "filters", "Filter"]
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(BadValue, match=f"'{text}' is no pattern; known: N:M"):
        parse_pattern(text)
