"""Pooling against recorded cases and a slow reference that walks over every window."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.layers import pooling
from caffe_dns.layers.pooling import (
    Window,
    average_pool,
    expected_pool,
    max_pool,
    stochastic_pool,
)
from tests.layers.build import make_layer
from tests.oracle import run_layer_case

CASES = [
    "pool_ave",
    "pool_ave_pad",
    "pool_ave_pad2",
    "pool_floor",
    "pool_global",
    "pool_global_max",
    "pool_max",
    "pool_max_mask",
    "pool_max_pad",
    "pool_rect",
]
#: (kernel, stride, pad), among them pads of more than half a kernel and strides beyond the kernel.
WINDOWS = [
    (1, 2, 0),
    (1, 3, 0),
    (2, 1, 1),
    (2, 2, 0),
    (2, 3, 1),
    (3, 1, 1),
    (3, 1, 2),
    (3, 2, 0),
    (3, 2, 2),
    (3, 5, 0),
    (5, 3, 3),
    (7, 4, 1),
]


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    run_layer_case(name)


def slow_windows(
    extent: int, kernel: int, stride: int, pad: int, end: int, ceil: bool, padded: bool
) -> list:
    """(first pixel, one past the last, size that AVE divides by) of each window of one axis."""
    steps = (extent + pad + end - kernel) / stride
    number = int(math.ceil(steps) if ceil else math.floor(steps)) + 1
    if padded and (number - 1) * stride >= extent + pad:
        number -= 1
    windows = []
    for index in range(number):
        start = index * stride - pad
        size = min(start + kernel, extent + end) - start
        windows.append((max(start, 0), min(start + kernel, extent), size))
    return windows


def slow_pool(plane: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maximum, its index in the plane, and average, of each window of one plane."""
    rows, columns = (
        slow_windows(
            plane.shape[axis],
            window.kernel[axis],
            window.stride[axis],
            window.pads[0][axis],
            window.pads[1][axis],
            window.ceil,
            any(map(any, window.pads)),
        )
        for axis in (0, 1)
    )
    most = np.full((len(rows), len(columns)), np.finfo(plane.dtype).min)
    index = np.full(most.shape, -1)
    mean = np.zeros(most.shape)
    for i, (top, bottom, height) in enumerate(rows):
        for j, (left, right, width) in enumerate(columns):
            for y, x in itertools.product(range(top, bottom), range(left, right)):
                mean[i, j] += plane[y, x]
                if plane[y, x] > most[i, j]:
                    most[i, j], index[i, j] = plane[y, x], y * plane.shape[1] + x
            with np.errstate(all="ignore"):
                mean[i, j] = np.divide(mean[i, j], height * width)
    return most, index, mean


def bottom_of(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 100 + width)
    # Few different values, so that equal maxima are common.
    values = torch.randint(-4, 5, (2, 3, height, width), generator=generator)
    return values.double() / 4


@pytest.mark.parametrize("ceil", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "pad"), WINDOWS)
def test_pooling_matches_the_slow_reference(kernel: int, stride: int, pad: int, ceil: bool) -> None:
    for height, width in itertools.product((4, 6, 9), (5, 8)):
        window = Window((kernel, kernel), (stride, stride), (pad, pad), ceil)
        if min(window.output_size((height, width))) < 1:
            continue
        bottom = bottom_of(height, width)
        most, index = max_pool(bottom, window)
        mean = average_pool(bottom, window)
        for n, c in itertools.product(range(2), range(3)):
            expected = slow_pool(bottom[n, c].numpy(), window)
            np.testing.assert_array_equal(most[n, c], expected[0])
            np.testing.assert_array_equal(index[n, c], expected[1])
            np.testing.assert_allclose(mean[n, c], expected[2], rtol=1e-12)


def test_an_axis_without_padding_follows_the_padded_one() -> None:
    window = Window((2, 1), (1, 2), (1, 0))
    bottom = bottom_of(5, 4)
    most, index, mean = slow_pool(bottom[1, 2].numpy(), window)
    assert most.shape == window.output_size((5, 4)) == (6, 2)
    np.testing.assert_array_equal(max_pool(bottom, window)[0][1, 2], most)
    np.testing.assert_array_equal(max_pool(bottom, window)[1][1, 2], index)
    np.testing.assert_allclose(average_pool(bottom, window)[1, 2], mean)


#: As `suits_torch` would say of the first three, and with other paddings behind.
SIDES = [
    Window((3, 3), (2, 2), (0, 0), ceil, end) for end in ((1, 1), (0, 2)) for ceil in (True, False)
] + [Window((2, 4), (3, 2), (1, 0), False, (0, 3)), Window((3, 2), (1, 1), (2, 1), True, (1, 0))]


@pytest.mark.parametrize("window", SIDES)
def test_padding_of_each_side(window: Window) -> None:
    for size in ((4, 5), (7, 6), (6, 9)):
        bottom = bottom_of(*size)
        most, index, mean = slow_pool(bottom[1, 2].numpy(), window)
        assert most.shape == window.output_size(size)
        np.testing.assert_array_equal(max_pool(bottom, window)[0][1, 2], most)
        np.testing.assert_array_equal(max_pool(bottom, window)[1][1, 2], index)
        np.testing.assert_allclose(average_pool(bottom, window)[1, 2], mean)


@pytest.mark.parametrize("window", [*SIDES, Window((3, 3), (2, 2), (1, 1)), Window((2, 2))])
def test_means_without_padding(window: Window) -> None:
    # The sum over the pixels of each window, divided by their number, from ones in their place.
    bottom = bottom_of(7, 6)
    ones = torch.ones_like(bottom)
    expected = average_pool(bottom, window) / average_pool(ones, window)
    torch.testing.assert_close(average_pool(bottom, window, padding=False), expected)
    assert torch.autograd.gradcheck(
        lambda x: average_pool(x, window, padding=False), bottom.requires_grad_()
    )


def test_padding_of_each_side_in_a_definition() -> None:
    text = "type: 'Pooling' top: 't' pooling_param {{ kernel_size: 3 stride: 2 {} }}"
    bottom = bottom_of(6, 6)
    for pool, padding in (("AVE", True), ("AVE_EXC_PAD", False), ("AVE_TF", False)):
        made = make_layer(text.format(f"pool: {pool} pad_r: 1 pad_b: 1"), tuple(bottom.shape))
        window = Window((3, 3), (2, 2), end=(1, 1))
        assert torch.equal(made(bottom), average_pool(bottom, window, padding=padding))
    tops = [
        make_layer(text.format(f"pool: AVE {pad}"), tuple(bottom.shape))(bottom)
        for pad in ("pad: 1", "pad_l: 1 pad_r: 1 pad_t: 1 pad_b: 1")
    ]
    assert torch.equal(*tops)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (2, 2), (3, 1), (1, 2), (2, 1), (5, 3)])
def test_padding_like_tensorflow(kernel: int, stride: int) -> None:
    # "SAME": extent / stride windows, rounded up; what is odd comes behind.
    text = f"kernel_size: {kernel} stride: {stride} pad_type: 1"
    for extent in (5, 6, 7):
        image = bottom_of(extent, extent)
        found = make_layer(f"type: 'Pooling' top: 't' pooling_param {{ {text} }}", image.shape)(
            image
        )
        windows = -(-extent // stride)
        before = max((windows - 1) * stride + kernel - extent, 0) // 2
        starts = [index * stride - before for index in range(windows)]
        for i, j in itertools.product(range(windows), repeat=2):
            rows, columns = (slice(max(starts[k], 0), starts[k] + kernel) for k in (i, j))
            assert torch.equal(found[..., i, j], image[..., rows, columns].amax((2, 3)))
        assert found.shape[2:] == (windows, windows)


@pytest.mark.parametrize(
    "window",
    [
        Window((3, 2), (2, 1), (1, 1)),
        Window((3, 4), (2, 3), (2, 3)),
        Window((1, 2), (2, 3)),
        SIDES[1],
    ],
)
def test_gradients(window: Window) -> None:
    generator = torch.Generator().manual_seed(1)
    bottom = torch.randperm(2 * 2 * 5 * 6, generator=generator).double().view(2, 2, 5, 6) / 10
    bottom.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: max_pool(x, window)[0], bottom)
    full = torch.isfinite(average_pool(bottom.detach(), window))
    assert torch.autograd.gradcheck(lambda x: average_pool(x, window).where(full, 0), bottom)


def test_expected_pool_weights_by_the_values() -> None:
    window = Window((2, 3), (2, 2))
    bottom = bottom_of(5, 6).abs()
    bottom[0, 0] = 0
    top = expected_pool(bottom, window)
    assert top.shape == (2, 3, 3, 3)
    np.testing.assert_array_equal(top[0, 0], np.zeros((3, 3)))
    last = bottom[1, 2, 4:, 4:]
    np.testing.assert_allclose(top[1, 2, 2, 2], (last**2).sum() / last.sum())
    leaf = bottom.clone().requires_grad_()
    expected_pool(leaf, window).sum().backward()
    assert leaf.grad is not None
    assert torch.isfinite(leaf.grad).all()
    leaf = (bottom + 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: expected_pool(x, window), leaf)


def test_stochastic_pool_draws_in_proportion() -> None:
    bottom = torch.tensor([[0.0, 3.0, 0.0], [1.0, 0.0, 4.0]]).double()
    many = bottom.expand(1, 4000, 2, 3).contiguous().requires_grad_()
    top = stochastic_pool(many, Window((2, 2), (2, 2)), torch.Generator().manual_seed(3))
    assert top.shape == (1, 4000, 1, 2)
    drawn = top.detach()[0, :, 0]
    assert set(drawn[:, 0].tolist()) == {1.0, 3.0}
    assert set(drawn[:, 1].tolist()) == {4.0}
    # Three quarters of 4000 draws, within four standard deviations.
    assert abs((drawn[:, 0] == 3).sum().item() - 3000) < 4 * math.sqrt(4000 * 3 / 16)
    top.sum().backward()
    gradient = many.grad
    assert gradient is not None
    np.testing.assert_array_equal(gradient.sum((2, 3)), np.full((1, 4000), 2))
    np.testing.assert_array_equal((gradient * many.detach()).sum((2, 3)), drawn.sum(1).unsqueeze(0))


def test_stochastic_layer_draws_anew_in_each_pass_of_training() -> None:
    text = 'type: "Pooling" top: "t" pooling_param { pool: STOCHASTIC kernel_size: 3 stride: 3 }'
    layer, twin = (make_layer(text, (2, 4, 9, 6), train=True) for _ in range(2))
    bottom = torch.rand(2, 4, 9, 6, generator=torch.Generator().manual_seed(5))
    first = layer(bottom)
    assert torch.equal(first, twin(bottom))
    layer.context.passes += 1
    assert not torch.equal(layer(bottom), first)
    layer.eval()
    assert torch.equal(layer(bottom), expected_pool(bottom, Window((3, 3), (3, 3))))


def test_global_pooling_follows_the_bottom() -> None:
    layer = make_layer(
        'type: "Pooling" top: "t" pooling_param { pool: AVE global_pooling: true }', (2, 3, 4, 5)
    )
    assert layer.reshape([(1, 3, 7, 6)]) == [(1, 3, 1, 1)]
    bottom = torch.rand(1, 3, 7, 6, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(layer(bottom), bottom.mean((2, 3), keepdim=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "pooling_param.kernel_size: must be given and at least 1"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 3", "either kernel_size or both kernel_h"),
        ("kernel_h: 2", "either kernel_size or both kernel_h"),
        ("kernel_size: 2 stride_h: 2", "either stride or both stride_h"),
        ("kernel_size: 2 stride: 0", "pooling_param.stride: must be given and at least 1"),
        ("kernel_size: 2 pad: 1 pad_h: 1 pad_w: 1", "either pad or both pad_h"),
        ("kernel_size: 2 pad: 2", "pooling_param.pad: must be smaller than the kernel"),
        ("kernel_size: 2 pad: 1 pool: STOCHASTIC", "STOCHASTIC takes no padding"),
        ("global_pooling: true kernel_w: 2", "pooling_param.kernel_w: global_pooling takes no"),
        ("global_pooling: true pad: 1", "pooling_param.global_pooling: takes no pad"),
        ("global_pooling: true stride: 2", "pooling_param.global_pooling: takes no pad"),
        ("kernel_size: 2 pad: 1 pad_l: 1", "pad_l: give either pad or the padding of each side"),
        ("kernel_size: 2 pad_b: 2", "pooling_param.pad: must be smaller than the kernel"),
        ("global_pooling: true pad_b: 2", "pooling_param.global_pooling: takes no pad"),
        ("kernel_size: 2 pad_type: 2", "pad_type: 0, or 1 without any padding, would be right"),
        ("kernel_size: 2 pad_type: 1 pad: 1", "pad_type: 0, or 1 without any padding, would be"),
        ("kernel_size: 9", "does not fit into the bottom's 5 x 6"),
    ],
)
def test_wrong_settings_are_named(settings: str, message: str) -> None:
    with pytest.raises(CaffeError, match=r"layer 'layer': .*" + message):
        make_layer(f'type: "Pooling" top: "t" pooling_param {{ {settings} }}', (2, 3, 5, 6))


def test_wrong_blobs_are_named() -> None:
    text = 'type: "Pooling" top: "t" pooling_param { kernel_size: 2 }'
    with pytest.raises(CaffeError, match="bottom: the bottom needs 4 axes"):
        make_layer(text, (2, 3, 5))
    with pytest.raises(CaffeError, match=r"pooling_param.pool: only MAX has a second top"):
        make_layer('type: "Pooling" top: "t" top: "m" pooling_param { pool: AVE }', (2, 3, 5, 6))


@pytest.mark.parametrize(("ceil", "rows"), [("true", 4), ("false", 3)])
def test_ceil_mode_of_forks(ceil: str, rows: int) -> None:
    text = f"type: 'Pooling' pooling_param {{ kernel_size: 3 stride: 2 ceil_mode: {ceil} }}"
    text = f"bottom: 'a' top: 'b' {text}"
    assert make_layer(text, (1, 1, 8, 8)).reshape([(1, 1, 8, 8)]) == [(1, 1, rows, rows)]
    with pytest.raises(CaffeError, match=r"pooling_param.ceil_mode: give either round_mode or"):
        make_layer(text.replace("ceil_mode", "round_mode: CEIL ceil_mode"), (1, 1, 8, 8))


def test_the_mean_of_whole_images_as_on_a_gpu() -> None:
    """Its gradient is PyTorch's, and lies in memory as the bottom does."""
    for memory_format in (torch.contiguous_format, torch.channels_last):
        bottom = torch.randn(3, 5, 7, 4).contiguous(memory_format=memory_format)
        bottoms = [bottom.clone().requires_grad_() for _ in range(2)]
        tops = pooling._Mean.apply(bottoms[0]), bottoms[1].mean((2, 3), keepdim=True)
        assert torch.equal(*tops)
        for top in tops:
            top.backward(torch.arange(15.0).view(3, 5, 1, 1))
        found, wanted = (each.grad for each in bottoms)
        assert found is not None and wanted is not None
        assert torch.equal(found, wanted)
        assert found.stride() == bottom.stride()
