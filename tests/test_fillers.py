"""Fillers by their distributions: fixed seeds, bounds of five standard errors or more."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.fillers import fill
from caffe_dns.proto.caffe_pb2 import FillerParameter

SHAPE = (40, 30, 5, 7)
COUNT = math.prod(SHAPE)


def filled(text: str, shape: tuple[int, ...] = SHAPE, seed: int = 3) -> Tensor:
    filler = text_format.Parse(text, FillerParameter())
    values = fill(shape, filler, torch.Generator().manual_seed(seed))
    assert values.dtype == torch.float32
    assert tuple(values.shape) == shape
    return values


def check_uniform(values: Tensor, low: float, high: float) -> None:
    span = high - low
    flat = values.double().flatten()
    assert low <= flat.min() < low + 0.01 * span
    assert high - 0.01 * span < flat.max() <= high
    error = 5 * span / math.sqrt(12 * flat.numel())
    assert float(flat.mean()) == pytest.approx((low + high) / 2, abs=error)
    assert float(flat.std()) == pytest.approx(span / math.sqrt(12), rel=0.02)
    shares = torch.histc(flat, 10, low, high) / flat.numel()
    assert shares.min() > 0.09
    assert shares.max() < 0.11


def check_normal(values: Tensor, mean: float, std: float) -> None:
    flat = values.double().flatten()
    assert float(flat.mean()) == pytest.approx(mean, abs=5 * std / math.sqrt(flat.numel()))
    assert float(flat.std()) == pytest.approx(std, rel=0.02)
    for deviations, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        inside = ((flat - mean).abs() < deviations * std).double().mean()
        assert float(inside) == pytest.approx(share, abs=0.012)


@pytest.mark.parametrize(("text", "value"), [("", 0), ("value: -1.5", -1.5)])
def test_constant(text: str, value: float) -> None:
    assert (filled(text) == value).all()
    assert float(filled(text, ())) == value


@pytest.mark.parametrize(("text", "low", "high"), [("", 0, 1), ("min: -3 max: 0.5", -3, 0.5)])
def test_uniform(text: str, low: float, high: float) -> None:
    check_uniform(filled(f"type: 'uniform' {text}"), low, high)


@pytest.mark.parametrize(("text", "mean", "std"), [("", 0, 1), ("mean: 2 std: 0.01", 2, 0.01)])
def test_gaussian(text: str, mean: float, std: float) -> None:
    check_normal(filled(f"type: 'gaussian' {text}"), mean, std)


@pytest.mark.parametrize("sparse", [0, 10, 40])
def test_sparse_gaussian(sparse: int) -> None:
    values = filled(f"type: 'gaussian' std: 0.1 sparse: {sparse}")
    kept = values != 0
    share = sparse / SHAPE[0]
    error = 5 * math.sqrt(share * (1 - share) / COUNT)
    assert float(kept.double().mean()) == pytest.approx(share, abs=error + 1e-12)
    if sparse:
        check_normal(values[kept], 0, 0.1)


NORMS = [
    ("", 30 * 5 * 7),
    ("variance_norm: FAN_IN", 30 * 5 * 7),
    ("variance_norm: FAN_OUT", 40 * 5 * 7),
    ("variance_norm: AVERAGE", 35 * 5 * 7),
]


@pytest.mark.parametrize(("text", "fan"), NORMS)
def test_xavier(text: str, fan: int) -> None:
    limit = math.sqrt(3 / fan)
    check_uniform(filled(f"type: 'xavier' {text}"), -limit, limit)


@pytest.mark.parametrize(("text", "fan"), NORMS)
def test_msra(text: str, fan: int) -> None:
    check_normal(filled(f"type: 'msra' {text}"), 0, math.sqrt(2 / fan))


def test_msra_before_a_prelu() -> None:
    """The variance is that of He et al., equation 15: 2 / ((1 + a^2) n)."""
    values = filled("type: 'msra' alpha: 0.5")
    check_normal(values, 0, math.sqrt(2 / (1.25 * 30 * 5 * 7)))


@pytest.mark.parametrize(
    ("text", "fan"),
    [("", 1), ("variance_norm: FAN_OUT", 20_000), ("variance_norm: AVERAGE", 10_000.5)],
)
def test_fans_of_one_axis(text: str, fan: float) -> None:
    limit = math.sqrt(3 / fan)
    check_uniform(filled(f"type: 'xavier' {text}", (20_000,)), -limit, limit)


@pytest.mark.parametrize("shape", [SHAPE, (6, 9), (8,)])
def test_positive_unitball(shape: tuple[int, ...]) -> None:
    values = filled("type: 'positive_unitball'", shape)
    assert (values > 0).all()
    sums = values.reshape(shape[0], -1).double().sum(1)
    np.testing.assert_allclose(sums, 1, rtol=1e-5)
    assert len(values.unique()) > 0.9 * values.numel() or shape == (8,)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 8])
def test_bilinear(width: int) -> None:
    values = filled("type: 'bilinear'", (2, 3, width, width))
    factor = math.ceil(width / 2)
    centre = (width - 1) / (2 * factor)
    for y in range(width):
        for x in range(width):
            wanted = (1 - abs(x / factor - centre)) * (1 - abs(y / factor - centre))
            np.testing.assert_allclose(values[:, :, y, x], wanted, rtol=1e-6)


def test_bilinear_upsamples_exactly() -> None:
    # Twice the size with kernel 4, stride 2, pad 1: the inside of a ramp stays a ramp.
    kernel = filled("type: 'bilinear'", (1, 1, 4, 4))
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    result = torch.nn.functional.conv_transpose2d(ramp, kernel, stride=2, padding=1)
    np.testing.assert_allclose(result[0, 0, 5, 2:10], np.arange(2, 10) / 2 - 0.25, rtol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "gaussian", "xavier", "msra", "positive_unitball"])
def test_draws_are_the_generators(kind: str) -> None:
    text = f"type: '{kind}'"
    assert torch.equal(filled(text, seed=1), filled(text, seed=1))
    assert not torch.equal(filled(text, seed=1), filled(text, seed=2))


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        (
            "type: 'gausian'",
            (2,),
            "unknown filler type 'gausian' (did you mean 'gaussian'?); known",
        ),
        ("sparse: 2", (2,), "filler type 'constant' does not take 'sparse'; 'gaussian' does"),
        ("type: 'gaussian' sparse: -2", (2,), "'sparse' must be at least -1, not -2"),
        ("type: 'gaussian' sparse: 3", (2, 9), "'sparse' is 3; it may be no more than the first"),
        (
            "type: 'gaussian' sparse: 0",
            (),
            "'sparse' is 0; it may be no more than the first extent",
        ),
        ("type: 'gaussian' std: -1", (2,), "with a negative std (-1.0)"),
        ("type: 'uniform' min: 2", (2,), "filler type 'uniform' with min 2 above max 1"),
        ("type: 'uniform' min: -2e38 max: 2e38", (2,), "from -2e+38 to 2e+38 is too far"),
        ("type: 'xavier'", (), "filler type 'xavier' needs a blob with at least one axis"),
        ("type: 'bilinear'", (2, 2), "needs 4 axes and a square kernel, not (2, 2)"),
        ("type: 'bilinear'", (2, 2, 3, 4), "needs 4 axes and a square kernel"),
    ],
)
def test_what_cannot_be_filled(text: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(CaffeError) as caught:
        filled(text, shape)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["constant", "uniform", "gaussian", "xavier", "msra"])
def test_a_blob_without_numbers_cannot_be_filled(kind: str) -> None:
    with pytest.raises(CaffeError, match=r"a blob of shape \(3, 0\) has no numbers to fill"):
        filled(f"type: '{kind}'", (3, 0))


def test_gaussian_unitball() -> None:
    values = filled("type: 'gaussian_unitball'", (40, 3, 50)).double()
    torch.testing.assert_close(values.flatten(1).norm(dim=1), torch.ones(40).double())
    # Scaled by the root of their number, entries are nearly normal.
    check_normal(filled("type: 'gaussian_unitball'", (200, 1000)) * 1000**0.5, 0, 1)


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "numbers.txt"
    file.write_text("1 -2.5\n3e2\t4 5 6 7\n")
    values = filled(f"type: 'file' file: '{file}'", (2, 3))
    assert values.tolist() == [[1, -2.5, 300], [4, 5, 6]]
    with pytest.raises(CaffeError, match=r"numbers.txt' has 7 numbers, 8 would be right"):
        filled(f"type: 'file' file: '{file}'", (8,))
    file.write_text("1 two")
    with pytest.raises(CaffeError, match=r"numbers.txt': could not convert string to float: 'two'"):
        filled(f"type: 'file' file: '{file}'", (2,))
    with pytest.raises(CaffeError, match=r"lost.txt': No such file or directory"):
        filled(f"type: 'file' file: '{tmp_path}/lost.txt'", (2,))
