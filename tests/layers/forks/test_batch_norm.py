"""BN of PSPNet and of SegNet against their formulas in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.layers.base import Layer
from tests.layers.harness import check_gradients, draw, make_layer, refused, run
from tests.nets import input_layer, layer, make_net

SHAPE = (4, 3, 5, 2)
AROUND = (0, 2, 3)


def bn(settings: str, shape: tuple[int, ...] = SHAPE, train: bool = False, tops: int = 1) -> Layer:
    phase = "TRAIN" if train else "TEST"
    return make_layer(f"type: 'BN' phase: {phase} bn_param {{ {settings} }}", shape, tops=tops)


def randomize(made: Layer) -> list[np.ndarray]:
    made.double()
    with torch.no_grad():
        for index, blob in enumerate(made.blobs):
            blob.copy_(draw(*blob.shape, seed=30 + index, positive=index == 3))
    return [blob.detach().numpy().copy() for blob in made.blobs]


def normalized(x: np.ndarray, mean: np.ndarray, variance: np.ndarray, eps: float) -> np.ndarray:
    return (x - mean) / np.sqrt(variance + eps)


def batch(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    values = x.detach().numpy()
    return values.mean(AROUND, keepdims=True), values.var(AROUND, keepdims=True)


@pytest.mark.parametrize(("settings", "eps"), [("momentum: 0.9", 1e-5), ("eps: 0.125", 0.125)])
def test_pspnet_in_tests(settings: str, eps: float) -> None:
    made = bn(settings)
    slope, bias, mean, variance = randomize(made)
    assert [blob.shape for blob in made.blobs] == [(1, 3, 1, 1)] * 4
    x = draw(*SHAPE)
    expected = slope * normalized(x.numpy(), mean, variance, eps) + bias
    np.testing.assert_allclose(run(made, x)[0].detach(), expected, rtol=1e-12, atol=1e-12)
    check_gradients(made, x)


def test_pspnet_in_training() -> None:
    made = bn("momentum: 0.8", train=True)
    slope, bias, mean, variance = randomize(made)
    x = draw(*SHAPE)
    new_mean, new_variance = batch(x)
    expected = slope * normalized(x.numpy(), new_mean, new_variance, 1e-5) + bias
    np.testing.assert_allclose(run(made, x)[0].detach(), expected, rtol=1e-12, atol=1e-12)
    momentum = float(np.float32(0.8))
    for index, old, new in ((2, mean, new_mean), (3, variance, new_variance)):
        wanted = momentum * old + (1 - momentum) * new
        np.testing.assert_allclose(made.blobs[index], wanted, rtol=1e-10)
    check_gradients(made, x)


def test_pspnet_frozen() -> None:
    made = bn("frozen: true slope_filler { value: 1 }", train=True)
    # What a frozen layer starts with is the identity, but for eps.
    assert [blob.flatten().tolist() for blob in made.blobs] == [[x] * 3 for x in (1, 0, 0, 1)]
    slope, bias, mean, variance = randomize(made)
    x = draw(*SHAPE)
    expected = slope * normalized(x.numpy(), mean, variance, 1e-5) + bias
    np.testing.assert_allclose(run(made, x)[0].detach(), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(made.blobs[2], mean)
    assert not any(blob.requires_grad for blob in made.blobs)
    check_gradients(made, x)


@pytest.mark.parametrize("train", [True, False])
def test_segnet_takes_the_statistics_of_the_batch(train: bool) -> None:
    made = bn("scale_filler { value: 2 } shift_filler { value: 3 }", train=train, tops=3)
    assert [blob.flatten().tolist() for blob in made.blobs] == [[2] * 3, [3] * 3]
    scale, shift = randomize(made)
    x = draw(*SHAPE)
    mean, variance = batch(x)
    top, found_mean, found_variance = run(made, x)
    expected = scale * normalized(x.numpy(), mean, variance, 1e-9) + shift
    np.testing.assert_allclose(top.detach(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found_mean, mean, rtol=1e-9)
    np.testing.assert_allclose(found_variance, variance, rtol=1e-9)


def test_segnet_gradient() -> None:
    check_gradients(bn("bn_mode: LEARN", train=True), draw(*SHAPE))


def test_segnet_for_inference() -> None:
    made = bn("bn_mode: INFERENCE", train=True)
    scale, shift = randomize(made)
    x = draw(*SHAPE)
    np.testing.assert_allclose(run(made, x)[0].detach(), scale * x.numpy() + shift, rtol=1e-12)
    check_gradients(made, x)


def test_statistics_are_exact_in_every_memory_format() -> None:
    x = torch.randn(64, 8, 32, 32, generator=torch.Generator().manual_seed(0)) + 100
    mean, variance = batch(x.double())
    for values in (x, x.to(memory_format=torch.channels_last)):
        made = bn("scale_filler { value: 1 }", (64, 8, 32, 32), tops=3)
        _, found_mean, found_variance = run(made, values)
        np.testing.assert_allclose(found_mean, mean, rtol=2e-6)
        np.testing.assert_allclose(found_variance, variance, rtol=2e-6)


def test_what_solvers_move() -> None:
    for settings, rates in (("eps: 0.1", [1, 1, 0, 0]), ("frozen: true", [0, 0, 0, 0])):
        net = make_net(
            input_layer(data=SHAPE) + layer("bn", "BN", "data", "bn", f"bn_param {{ {settings} }}")
        )
        assert [param.lr_mult for param in net.table.owned] == rates


def test_what_is_refused() -> None:
    text = "type: 'BN' bn_param {{ {} }}"
    assert refused(text.format("bn_mode: LEARN eps: 0.1"), SHAPE).endswith(
        "bn_param.eps: is PSPNet's; of SegNet's kind are scale_filler, shift_filler, bn_mode"
    )
    for settings in ("eps: 0.1", "bn_mode: INFERENCE"):
        assert "only SegNet's kind in LEARN" in refused(text.format(settings), SHAPE, tops=2)
    assert "needs at least 2 axes" in refused(text.format(""), (3,))


def darknet(settings: str, train: bool) -> Layer:
    phase = "TRAIN" if train else "TEST"
    text = f"type: 'DarknetBatchNorm' phase: {phase} batch_norm_param {{ {settings} }}"
    return make_layer(text, SHAPE).double()


def test_darknet_in_training() -> None:
    made = darknet("eps: 0.25 moving_average_fraction: 0.5", train=True)
    x = draw(*SHAPE)
    mean, variance = batch(x)
    expected = (x.numpy() - mean) / (np.sqrt(variance) + 0.25)
    for count in (1.0, 1.5):
        np.testing.assert_allclose(run(made, x)[0], expected, rtol=1e-12, atol=1e-12)
        # Decayed sums, as BatchNorm keeps them; the variance is unbiased, of 40 numbers.
        unbiased = variance.ravel() * 40 / 39
        wanted = (count * mean.ravel(), count * unbiased, np.array([count]))
        for blob, sums in zip(made.blobs, wanted, strict=True):
            np.testing.assert_allclose(blob, sums, rtol=1e-6)
    check_gradients(made, x)


def test_darknet_in_tests() -> None:
    made = darknet("eps: 0.25", train=False)
    x = draw(*SHAPE)
    assert torch.equal(made(x), x / 0.25)
    with torch.no_grad():
        for blob, values in zip(made.blobs, ([2.0, 4, 6], [8.0, 2, 18], [2.0]), strict=True):
            blob.copy_(torch.tensor(values))
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ([1.0, 2, 3], [2.0, 1, 3]))
    torch.testing.assert_close(made(x), (x - mean) / (deviation + 0.25))
    check_gradients(made, x)


def test_what_darknet_refuses() -> None:
    text = "type: 'DarknetBatchNorm' batch_norm_param {{ {} }}"
    assert "scale_bias: is for layers of type BatchNorm" in refused(
        text.format("scale_bias: true"), SHAPE
    )
    assert "eps: is -1; at least 0" in refused(text.format("eps: -1"), SHAPE)
    assert "the bottom needs at least 2 axes" in refused(text.format(""), (3,))
