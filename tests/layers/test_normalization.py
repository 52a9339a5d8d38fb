"""BatchNorm, LRN and MVN against recorded cases, float64 references and gradcheck."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers import Layer
from caffe_dns.layers.batch_norm import BatchNorm, Fused
from caffe_dns.layers.normalization import add_neighbours, pool_neighbours
from tests.layers.build import make_layer
from tests.oracle import run_layer_case

CASES = [
    "bn_frac",
    "bn_global_train",
    "bn_test",
    "bn_train",
    "lrn",
    "lrn_k",
    "lrn_within",
    "mvn",
    "mvn_across",
    "mvn_mean",
]


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    run_layer_case(name)


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double() * 2 + 0.5


def batch_norm(settings: str, *shape: int, train: bool = True) -> Layer:
    text = f'type: "BatchNorm" top: "t" batch_norm_param {{ {settings} }}'
    return make_layer(text, shape, train=train).double()


@pytest.mark.parametrize("shape", [(6,), (4, 3), (4, 3, 5), (4, 3, 5, 2), (2, 3, 4, 2, 3)])
def test_batch_norm_sums_up_statistics(shape: tuple[int, ...]) -> None:
    layer = batch_norm("moving_average_fraction: 0.75 eps: 0.01", *shape)
    channels = shape[1] if len(shape) > 1 else 1
    expected = [np.zeros(channels), np.zeros(channels), np.zeros(1)]
    for seed in (1, 2):
        bottom = draw(*shape, seed=seed)
        rows = bottom.reshape(shape[0], channels, -1).transpose(0, 1).reshape(channels, -1).numpy()
        batch = [rows.mean(1), rows.var(1, ddof=1), np.ones(1)]
        expected = [old * 0.75 + new for old, new in zip(expected, batch, strict=True)]
        top = layer(bottom).reshape(shape[0], channels, -1).transpose(0, 1).reshape(channels, -1)
        centred = rows - rows.mean(1, keepdims=True)
        scaled = centred / np.sqrt(rows.var(1, keepdims=True) + 0.01)
        np.testing.assert_allclose(top, scaled, atol=1e-12)
    for blob, values in zip(layer.blobs, expected, strict=True):
        np.testing.assert_allclose(blob, values, rtol=1e-10)


@pytest.mark.parametrize("more", ["", "scale_bias: true"])
def test_images_that_share_statistics(more: str) -> None:
    """As if each part were a batch of its own, one after the other."""
    settings = f"moving_average_fraction: 0.75 eps: 0.01 {more}"
    whole = batch_norm(f"{settings} stats_batch_size: 2", 6, 3, 4)
    single = batch_norm(settings, 2, 3, 4)
    bottom = draw(6, 3, 4)
    top = whole(bottom)
    expected = torch.cat([single(part) for part in bottom.split(2)])
    torch.testing.assert_close(top, expected, rtol=0, atol=0)
    for blob, other in zip(whole.blobs, single.blobs, strict=True):
        assert torch.equal(blob, other)
    assert torch.autograd.gradcheck(whole, bottom.requires_grad_())
    # With statistics of before, images share nothing.
    tested = batch_norm(f"{settings} stats_batch_size: 4", 6, 3, 4, train=False)
    assert tested(bottom).shape == bottom.shape
    with pytest.raises(CaffeError, match=r"is 4; a divisor of the batch size, 6, would be right"):
        batch_norm("stats_batch_size: 4", 6, 3, 4)


def test_batch_norm_uses_global_statistics_in_test() -> None:
    layer = batch_norm("", 4, 3, 5, train=False)
    bottom = draw(4, 3, 5)
    np.testing.assert_allclose(layer(bottom), bottom / np.sqrt(1e-5), rtol=1e-6)
    mean, variance = np.array([0.5, -1, 2]), np.array([4, 0.25, 1])
    values = (mean * 7, variance * 7, np.array([7.0]))
    for blob, value in zip(layer.blobs, values, strict=True):
        blob.copy_(torch.from_numpy(value))
    expected = (bottom.numpy() - mean[:, None]) / np.sqrt(variance + 1e-5)[:, None]
    np.testing.assert_allclose(layer(bottom), expected, rtol=1e-6)
    # The statistics are constants of the gradient.
    leaf = bottom.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad is not None
    scale = np.broadcast_to(1 / np.sqrt(variance + 1e-5)[:, None], (4, 3, 5))
    np.testing.assert_allclose(leaf.grad, scale, rtol=1e-6)
    np.testing.assert_array_equal(layer.blobs[2], [7])


def test_batch_norm_in_test_on_its_batch_takes_the_batch_in() -> None:
    layer = batch_norm("use_global_stats: false", 4, 3, 5, train=False)
    bottom = draw(4, 3, 5)
    top = layer(bottom)
    np.testing.assert_allclose(top.mean((0, 2)), np.zeros(3), atol=1e-12)
    np.testing.assert_allclose(layer.blobs[0], bottom.mean((0, 2)), atol=1e-12)
    assert layer.blobs[2] == 1


def test_batch_norm_of_a_single_element_for_each_channel() -> None:
    layer = batch_norm("", 1, 3)
    bottom = draw(1, 3)
    np.testing.assert_allclose(layer(bottom), np.zeros((1, 3)), atol=1e-12)
    np.testing.assert_allclose(layer.blobs[0], bottom[0])
    np.testing.assert_allclose(layer.blobs[1], np.zeros(3), atol=1e-12)


def test_batch_norm_keeps_the_memory_format() -> None:
    layer = batch_norm("", 4, 3, 5, 6)
    bottom = draw(4, 3, 5, 6)
    top = layer(bottom.to(memory_format=torch.channels_last))
    assert top.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(top, batch_norm("", 4, 3, 5, 6)(bottom))


NVCAFFE = "scale_bias: true moving_average_fraction: 0.75 eps: 0"


def own_batch_norm(train: bool) -> tuple[BatchNorm, np.ndarray, np.ndarray]:
    layer = batch_norm(NVCAFFE, 4, 3, 5, train=train)
    assert isinstance(layer, BatchNorm)
    assert [blob.flatten().tolist() for blob in layer.blobs[2:]] == [[1], [1] * 3, [0] * 3]
    scale, bias = draw(3), draw(3) + 1
    with torch.no_grad():
        layer.blobs[3].copy_(scale)
        layer.blobs[4].copy_(bias)
    return layer, scale.numpy()[:, None], bias.numpy()[:, None]


def test_batch_norm_of_nvcaffe_in_training() -> None:
    layer, scale, bias = own_batch_norm(train=True)
    averages = None
    for number in range(3):
        bottom = draw(4, 3, 5) * (number + 1) + number
        values = bottom.numpy()
        mean = values.mean((0, 2))
        variance = values.var((0, 2))
        normal = (values - mean[:, None]) / np.sqrt(variance + 1e-5)[:, None]
        np.testing.assert_allclose(layer(bottom).detach(), scale * normal + bias, rtol=1e-6)
        new = np.stack([mean, variance * 20 / 19])
        averages = new if averages is None else 0.75 * averages + 0.25 * new
    assert averages is not None
    np.testing.assert_allclose(layer.blobs[0], averages[0], rtol=1e-10)
    np.testing.assert_allclose(layer.blobs[1], averages[1], rtol=1e-10)
    assert layer.blobs[2] == 1
    factor, shift = torch.tensor([2.0, 3, 4]).double(), torch.tensor([1.0, 0, 2]).double()
    bottom = draw(4, 3, 5)
    around = layer(bottom) * factor[:, None] + shift[:, None]
    torch.testing.assert_close(layer.normalize(bottom, Fused(factor=factor, shift=shift)), around)
    assert torch.autograd.gradcheck(layer, bottom.requires_grad_())


def test_batch_norm_of_nvcaffe_in_tests() -> None:
    layer, scale, bias = own_batch_norm(train=False)
    mean, variance = np.array([1.0, -2, 3]), np.array([0.5, 2, 1])
    layer.blobs[0].copy_(torch.from_numpy(mean))
    layer.blobs[1].copy_(torch.from_numpy(variance))
    bottom = draw(4, 3, 5)
    normal = (bottom.numpy() - mean[:, None]) / np.sqrt(variance + 1e-5)[:, None]
    np.testing.assert_allclose(layer(bottom).detach(), scale * normal + bias, rtol=1e-6)


def test_fillers_alone_make_a_batch_norm_of_nvcaffe() -> None:
    layer = batch_norm("bias_filler { value: 3 }", 4, 3, 5)
    assert [blob.flatten().tolist() for blob in layer.blobs[2:]] == [[1], [1] * 3, [3] * 3]
    plain = batch_norm("filler { value: 1 }", 4, 3, 5)
    assert len(plain.blobs) == 3
    with pytest.raises(CaffeError, match=r"batch_norm_param.filler: { value: 1 } would be right"):
        batch_norm("filler { value: 2 }", 4, 3, 5)


def test_batch_norm_gradient() -> None:
    layer = batch_norm("", 3, 2, 4)
    assert torch.autograd.gradcheck(layer, draw(3, 2, 4).requires_grad_())


def test_batch_norm_blobs_never_learn() -> None:
    layer = batch_norm("", 3, 2, 4)
    assert isinstance(layer, BatchNorm)
    assert layer.fixed_blobs == (0, 1, 2)
    assert [tuple(blob.shape) for blob in layer.blobs] == [(2,), (2,), (1,)]
    assert not any(blob.requires_grad for blob in layer.blobs)
    with pytest.raises(
        CaffeError, match="bottom: the statistics are of 2 channels, the bottom has 3"
    ):
        layer.reshape([(3, 3, 4)])
    with pytest.raises(CaffeError, match=r"batch_norm_param.eps: is -1; at least 0 would be"):
        batch_norm("eps: -1", 3, 2, 4)


def slow_lrn(bottom: np.ndarray, size: int, alpha: float, beta: float, k: float) -> np.ndarray:
    top = np.empty_like(bottom)
    for c in range(bottom.shape[1]):
        near = bottom[:, max(0, c - size // 2) : c + size // 2 + 1]
        top[:, c] = bottom[:, c] * (k + alpha / size * (near**2).sum(1)) ** -beta
    return top


@pytest.mark.parametrize("size", [1, 3, 9, 2**31 - 1])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_lrn_across_channels(size: int, memory_format: torch.memory_format) -> None:
    text = f'type: "LRN" top: "t" lrn_param {{ local_size: {size} alpha: 0.5 beta: 0.75 k: 2 }}'
    layer = make_layer(text, (2, 5, 3, 4))
    bottom = draw(2, 5, 3, 4)
    fed = bottom.clone(memory_format=memory_format).requires_grad_()
    top = layer(fed)
    assert top.is_contiguous(memory_format=memory_format)
    expected = slow_lrn(bottom.numpy(), size, 0.5, 0.75, 2)
    np.testing.assert_allclose(top.detach(), expected, rtol=1e-10)
    assert torch.autograd.gradcheck(layer, fed)


@pytest.mark.parametrize("size", [1, 3, 9])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_both_ways_to_sum_channels_agree(size: int, memory_format: torch.memory_format) -> None:
    values = draw(2, 5, 3, 4).to(memory_format=memory_format)
    added, pooled = add_neighbours(values, size), pool_neighbours(values, size)
    assert pooled.is_contiguous(memory_format=memory_format)
    np.testing.assert_allclose(pooled, added, rtol=1e-12)
    near = values[:, max(0, 3 - size // 2) : 3 + size // 2 + 1].sum(1)
    np.testing.assert_allclose(pooled[:, 3], near, rtol=1e-12)


@pytest.mark.parametrize("size", [5, 9, 13, 65535, 2**31 - 1])
def test_lrn_within_channel_ignores_k(size: int) -> None:
    alpha = 0.02 * size**2
    text = (
        f'type: "LRN" top: "t" lrn_param {{ local_size: {size} alpha: {alpha} beta: 0.75 k: 3 '
        "norm_region: WITHIN_CHANNEL }"
    )
    layer = make_layer(text, (2, 3, 4, 6))
    bottom = draw(2, 3, 4, 6)
    reach = min(size // 2, 6)
    padded = np.pad(bottom.numpy() ** 2, ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    window = range(2 * reach + 1)
    near = sum(padded[:, :, y : y + 4, x : x + 6] for y in window for x in window)
    expected = bottom.numpy() * (1 + float(np.float32(alpha)) / size**2 * near) ** -0.75
    np.testing.assert_allclose(layer(bottom), expected, rtol=1e-10)
    assert torch.autograd.gradcheck(layer, bottom.requires_grad_())


def test_wrong_lrn_settings_are_named() -> None:
    with pytest.raises(CaffeError, match=r"lrn_param.local_size: is 4; an odd number"):
        make_layer('type: "LRN" top: "t" lrn_param { local_size: 4 }', (2, 3, 4, 5))
    with pytest.raises(CaffeError, match="bottom: the bottom needs 4 axes"):
        make_layer('type: "LRN" top: "t"', (2, 3, 4))


@pytest.mark.parametrize("settings", ["", "across_channels: true", "normalize_variance: false"])
def test_mvn_gradient(settings: str) -> None:
    layer = make_layer(f'type: "MVN" top: "t" mvn_param {{ {settings} }}', (2, 3, 4, 2))
    assert torch.autograd.gradcheck(layer, draw(2, 3, 4, 2).requires_grad_())


def test_mvn_divides_by_the_deviation_plus_eps() -> None:
    layer = make_layer('type: "MVN" top: "t" mvn_param { eps: 0.5 }', (2, 3, 4))
    bottom = draw(2, 3, 4).requires_grad_()
    top = layer(bottom)
    assert top.shape == (2, 3, 4, 1)
    rows = bottom.detach().numpy()
    scale = rows.std(2, keepdims=True) + 0.5
    expected = (rows - rows.mean(2, keepdims=True)) / scale
    np.testing.assert_allclose(top.detach()[..., 0], expected, rtol=1e-6)
    given = draw(2, 3, 4, seed=2)
    top.backward(given[..., None])
    along = (given.numpy() * expected).mean(2, keepdims=True)
    wanted = (given.numpy() - given.numpy().mean(2, keepdims=True) - expected * along) / scale
    assert bottom.grad is not None
    np.testing.assert_allclose(bottom.grad, wanted, rtol=1e-6)


def test_mvn_of_equal_numbers_has_a_finite_gradient() -> None:
    layer = make_layer('type: "MVN" top: "t"', (1, 2, 3, 1))
    bottom = torch.full((1, 2, 3, 1), 0.5, requires_grad=True)
    top = layer(bottom)
    np.testing.assert_array_equal(top.detach(), np.zeros((1, 2, 3, 1)))
    top[0, 0, 1, 0].backward()
    assert bottom.grad is not None
    assert torch.isfinite(bottom.grad).all()
    with pytest.raises(CaffeError, match="bottom: the bottom may have up to 4 axes, it has 5"):
        make_layer('type: "MVN" top: "t"', (1, 2, 3, 1, 2))
