"""Layers that map each entry by itself: golden cases, derivatives, kinks, and dropout's draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.layers import Context
from tests.layers.harness import check_gradients, draw, gradient_of, make_layer, refused, run
from tests.oracle import run_layer_case

GOLDEN = [
    "absval",
    "bnll",
    "clip",
    "dropout_test",
    "elu",
    "elu_a",
    "exp",
    "exp_b",
    "log",
    "log_b",
    "power",
    "power_frac",
    "power_id",
    "prelu",
    "prelu_shared",
    "relu",
    "relu_leaky",
    "sigmoid",
    "swish",
    "swish_b",
    "tanh",
    "threshold",
]


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_case(name: str) -> None:
    run_layer_case(name)


SMOOTH = [
    "type: 'ReLU'",
    "type: 'ReLU' relu_param { negative_slope: 0.3 }",
    "type: 'ReLU' relu_param { negative_slope: -0.3 }",
    "type: 'PReLU'",
    "type: 'PReLU' prelu_param { channel_shared: true }",
    "type: 'Sigmoid'",
    "type: 'TanH'",
    "type: 'ELU' elu_param { alpha: 1.7 }",
    "type: 'Swish' swish_param { beta: -0.8 }",
    "type: 'BNLL'",
    "type: 'AbsVal'",
    "type: 'Power' power_param { power: 3 scale: 0.5 shift: -1 }",
    "type: 'Power' power_param { power: 2 }",
    "type: 'Power' power_param { power: -1 scale: 2 }",
    "type: 'Exp' exp_param { base: 3 scale: -0.5 shift: 0.25 }",
    "type: 'Clip' clip_param { min: -0.4 max: 0.9 }",
]


@pytest.mark.parametrize("definition", SMOOTH)
def test_gradient_is_the_derivative(definition: str) -> None:
    check_gradients(make_layer(definition, (2, 3, 4)), draw(2, 3, 4))


@pytest.mark.parametrize(
    "definition",
    [
        "type: 'Log'",
        "type: 'Log' log_param { base: 0.5 scale: 3 shift: 0.25 }",
        "type: 'Power' power_param { power: 0.37 scale: 0.83 shift: 0.4 }",
        "type: 'Power' power_param { power: 0.5 }",
    ],
)
def test_gradient_for_positive_entries(definition: str) -> None:
    check_gradients(make_layer(definition, (2, 3)), draw(2, 3, positive=True))


@pytest.mark.parametrize(
    ("definition", "entries", "gradients"),
    [
        ("type: 'ReLU'", [0.0, -0.0], [0.0, 0.0]),
        ("type: 'ReLU' relu_param { negative_slope: 0.25 }", [0.0, -0.0], [0.25, 0.25]),
        ("type: 'PReLU'", [0.0, -0.0], [0.25, 0.25]),
        ("type: 'ELU' elu_param { alpha: 0.5 }", [0.0], [0.5]),
        ("type: 'AbsVal'", [0.0, -0.0], [0.0, 0.0]),
        ("type: 'Clip' clip_param { min: -1 max: 2 }", [-1.0, 2.0, -1.5, 2.5], [1, 1, 0, 0]),
        ("type: 'BNLL'", [60.0, 49.0], [1.0, 1.0]),
        ("type: 'Power' power_param { power: 3 }", [0.0], [0.0]),
    ],
)
def test_gradient_at_kinks(definition: str, entries: list[float], gradients: list[float]) -> None:
    layer = make_layer(definition, (1, len(entries)))
    assert gradient_of(layer, entries) == pytest.approx(gradients)


def test_prelu_defaults_and_shapes() -> None:
    per_channel = make_layer("type: 'PReLU'", (2, 3, 4, 5))
    assert torch.equal(per_channel.blobs[0], torch.full((3,), 0.25))
    shared = make_layer("type: 'PReLU' prelu_param { channel_shared: true }", (2, 3))
    assert torch.equal(shared.blobs[0], torch.tensor(0.25))
    filled = make_layer("type: 'PReLU' prelu_param { filler { value: 0.5 } }", (2, 3))
    assert torch.equal(filled.blobs[0], torch.full((3,), 0.5))
    assert "at least 2 axes" in refused("type: 'PReLU'", (3,))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("power: 0 scale: 3 shift: -2", 1.0),
        ("power: 0 shift: 0", 1.0),
        ("power: 3 scale: 0 shift: -2", -8.0),
        ("power: -1 scale: 0 shift: 0", np.inf),
        ("power: 0.5 scale: 0 shift: -1", np.nan),
    ],
)
def test_power_that_ignores_its_bottom(settings: str, expected: float) -> None:
    layer = make_layer(f"type: 'Power' power_param {{ {settings} }}", (2, 3))
    bottom = torch.tensor([[0.0, 1.0, -1.0], [np.nan, np.inf, 2.0]])
    np.testing.assert_array_equal(run(layer, bottom)[0], np.full((2, 3), expected))


def test_exp_and_log_are_inverse_to_any_base() -> None:
    entries = draw(2, 5)
    settings = "base: 2.5 scale: 0.5 shift: 3"
    exp = run(make_layer(f"type: 'Exp' exp_param {{ {settings} }}", (2, 5)).double(), entries)[0]
    np.testing.assert_allclose(exp, 2.5 ** (3 + 0.5 * entries.numpy()), rtol=1e-12)
    log = make_layer("type: 'Log' log_param { base: 2.5 }", (2, 5)).double()
    np.testing.assert_allclose(run(log, exp)[0], 3 + 0.5 * entries.numpy(), rtol=1e-12)


def test_clip_with_min_above_max_gives_min() -> None:
    layer = make_layer("type: 'Clip' clip_param { min: 2 max: -1 }", (1, 3))
    assert run(layer, torch.tensor([[-5.0, 0.0, 5.0]]))[0].tolist() == [[2.0, 2.0, 2.0]]
    assert gradient_of(layer, [-5.0, 0.0, 5.0]) == [0.0, 0.0, 0.0]


def test_threshold_is_strict_and_has_no_gradient() -> None:
    layer = make_layer("type: 'Threshold' threshold_param { threshold: 0.5 }", (1, 3))
    top = run(layer, torch.tensor([[0.25, 0.5, 0.75]], requires_grad=True))[0]
    assert top.tolist() == [[0.0, 0.0, 1.0]]
    assert not top.requires_grad


@pytest.mark.parametrize(
    ("definition", "part"),
    [
        ("type: 'Exp' exp_param { base: 0 }", "exp_param.base: is 0;"),
        ("type: 'Exp' exp_param { base: inf }", "exp_param.base: is inf;"),
        ("type: 'Log' log_param { base: -2 }", "log_param.base: is -2;"),
        ("type: 'Log' log_param { base: 1 }", "log_param.base: there is no logarithm"),
        ("type: 'Clip' clip_param { min: 0 }", "clip_param.max: must be given"),
        ("type: 'Clip'", "clip_param.min: must be given"),
        ("type: 'Dropout' dropout_param { dropout_ratio: 1 }", "dropout_ratio: is 1;"),
        ("type: 'Dropout' dropout_param { dropout_ratio: -0.5 }", "dropout_ratio: is -0.5;"),
        ("type: 'AbsVal' bottom: 'x' top: 'x'", "'x' is both bottom and top"),
    ],
)
def test_wrong_settings(definition: str, part: str) -> None:
    assert part in refused(definition, (2, 3))


@pytest.mark.parametrize("shapes", [(), ((2, 3), (2, 3))])
def test_wrong_number_of_bottoms(shapes: tuple[tuple[int, int], ...]) -> None:
    assert "takes 1 bottom blob(s)" in refused("type: 'ReLU'", *shapes)


DROPOUT = "type: 'Dropout' phase: TRAIN dropout_param { dropout_ratio: 0.3 }"


def test_dropout_scales_what_it_keeps() -> None:
    layer = make_layer(DROPOUT, (40, 250))
    bottom = draw(40, 250).float().requires_grad_()
    top = run(layer, bottom)[0]
    kept = top != 0
    np.testing.assert_allclose(top[kept].detach(), bottom[kept].detach() / 0.7, rtol=1e-6)
    # Five standard deviations of a binomial distribution with 10000 draws.
    assert abs(kept.double().mean().item() - 0.7) < 5 * (0.3 * 0.7 / 1e4) ** 0.5
    top.sum().backward()
    assert bottom.grad is not None
    np.testing.assert_allclose(bottom.grad, kept / 0.7, rtol=1e-6)


def test_dropout_of_faster_rcnn_scales_in_tests_instead() -> None:
    text = DROPOUT.replace("0.3", "0.3 scale_train: false")
    bottom = draw(40, 250)
    top = run(make_layer(text, (40, 250)), bottom)[0]
    kept = top != 0
    np.testing.assert_allclose(top[kept], bottom[kept], rtol=1e-6)
    assert abs(kept.double().mean().item() - 0.7) < 5 * (0.3 * 0.7 / 1e4) ** 0.5
    test = make_layer(text.replace("TRAIN", "TEST"), (40, 250))
    np.testing.assert_allclose(run(test, bottom)[0], bottom * 0.7, rtol=1e-6)


def test_dropout_of_segnet_draws_in_tests_too() -> None:
    text = DROPOUT.replace("0.3", "0.3 sample_weights_test: true").replace("TRAIN", "TEST")
    x = draw(40, 250)
    top = make_layer(text, (40, 250))(x)
    kept = top != 0
    assert 0.68 < kept.double().mean() < 0.72
    torch.testing.assert_close(top[kept], x[kept] / 0.7)


def test_dropout_draws_anew_at_each_pass_and_rank() -> None:
    bottom = torch.ones(10, 50)

    def top(passes: int, rank: int, seed: int = 1) -> list[list[float]]:
        context = Context(seed=seed, rank=rank, passes=passes)
        return run(make_layer(DROPOUT, (10, 50), context=context), bottom)[0].tolist()

    assert top(3, 0) == top(3, 0)
    draws = [top(3, 0), top(4, 0), top(3, 1), top(3, 0, seed=2)]
    assert all(a != b for i, a in enumerate(draws) for b in draws[:i])


def test_dropout_that_drops_nothing_is_the_identity() -> None:
    bottom = torch.ones(2, 3)
    assert make_layer("type: 'Dropout'", (2, 3))(bottom) is bottom
    never = make_layer("type: 'Dropout' phase: TRAIN dropout_param { dropout_ratio: 0 }", (2, 3))
    assert never(bottom) is bottom


@pytest.mark.parametrize("definition", [*SMOOTH, DROPOUT])
def test_memory_format_is_kept(definition: str) -> None:
    bottom = draw(2, 3, 4, 5).float().to(memory_format=torch.channels_last)
    top = run(make_layer(definition, (2, 3, 4, 5)), bottom)[0]
    assert top.is_contiguous(memory_format=torch.channels_last)
