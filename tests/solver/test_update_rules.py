"""The six update rules against Caffe's arithmetic, restated in numpy in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from caffe_dns import kernels
from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.solver.snapshot import gather_histories, restore_histories
from caffe_dns.solver.update_rules import solver_types
from caffe_dns.solver.update_rules.adaptive import Adam
from caffe_dns.solver.update_rules.sgd import SGD
from tests.nets import input_layer, layer, make_net
from tests.solver.rules import NET, TYPES, make, parse, put_gradients

STEPS = 6
RATES = [0.1, 0.05, 0.2, 0.01, 0.1, 0.03]
VARIANTS = {
    "plain": "",
    "decay": "weight_decay: 0.1",
    "l1": 'weight_decay: 0.05 regularization_type: "L1"',
    "clip": "clip_gradients: 2.5",
    "iter_size": "iter_size: 4",
    "all": 'weight_decay: 0.1 regularization_type: "L2" clip_gradients: 3 iter_size: 2',
}


class Reference:
    """`SGDSolver::ApplyUpdate` and the files in `src/caffe/solvers`, parameter by parameter."""

    def __init__(self, net: Net, param: SolverParameter) -> None:
        self.param = param
        self.specs = [(p.lr_mult, p.decay_mult, p.is_mask) for p in net.learnable_params]
        self.values = [p.tensor.detach().double().numpy().copy() for p in net.learnable_params]
        self.first = [np.zeros_like(value) for value in self.values]
        self.second = [np.zeros_like(value) for value in self.values]
        self.iteration = 0

    def apply(self, gradients: list[np.ndarray], rate: float) -> None:
        param = self.param
        norm = np.sqrt(sum((g**2).sum() for g in gradients))
        scale = param.clip_gradients / norm if 0 <= param.clip_gradients < norm else 1.0
        for index, (lr_mult, decay_mult, is_mask) in enumerate(self.specs):
            if is_mask:
                continue
            value = self.values[index]
            gradient = gradients[index] * scale / param.iter_size
            decay = param.weight_decay * decay_mult
            gradient += decay * (np.sign(value) if param.regularization_type == "L1" else value)
            value -= RULES[param.type](self, index, gradient, rate * lr_mult)
        self.iteration += 1

    def sgd(self, i: int, g: np.ndarray, rate: float) -> np.ndarray:
        self.first[i] = self.param.momentum * self.first[i] + rate * g
        return self.first[i]

    def nesterov(self, i: int, g: np.ndarray, rate: float) -> np.ndarray:
        momentum, before = self.param.momentum, self.first[i]
        self.first[i] = momentum * before + rate * g
        return (1 + momentum) * self.first[i] - momentum * before

    def adagrad(self, i: int, g: np.ndarray, rate: float) -> np.ndarray:
        self.first[i] = self.first[i] + g**2
        return rate * g / (np.sqrt(self.first[i]) + self.param.delta)

    def rmsprop(self, i: int, g: np.ndarray, rate: float) -> np.ndarray:
        decay = self.param.rms_decay
        self.first[i] = decay * self.first[i] + (1 - decay) * g**2
        return rate * g / (np.sqrt(self.first[i]) + self.param.delta)

    def adadelta(self, i: int, g: np.ndarray, rate: float) -> np.ndarray:
        momentum, delta = self.param.momentum, self.param.delta
        self.first[i] = momentum * self.first[i] + (1 - momentum) * g**2
        update = g * np.sqrt((self.second[i] + delta) / (self.first[i] + delta))
        self.second[i] = momentum * self.second[i] + (1 - momentum) * update**2
        return rate * update

    def adam(self, i: int, g: np.ndarray, rate: float) -> np.ndarray:
        one, two, t = self.param.momentum, self.param.momentum2, self.iteration + 1
        self.first[i] = one * self.first[i] + (1 - one) * g
        self.second[i] = two * self.second[i] + (1 - two) * g**2
        correction = np.sqrt(1 - two**t) / (1 - one**t)
        return rate * correction * self.first[i] / (np.sqrt(self.second[i]) + self.param.delta)


Rule = Callable[[Reference, int, np.ndarray, float], np.ndarray]
RULES: dict[str, Rule] = {
    "SGD": Reference.sgd,
    "Nesterov": Reference.nesterov,
    "AdaGrad": Reference.adagrad,
    "RMSProp": Reference.rmsprop,
    "AdaDelta": Reference.adadelta,
    "Adam": Reference.adam,
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", TYPES)
def test_rule(kind: str, variant: str) -> None:
    net, rule = make(kind, f"{TYPES[kind]} {VARIANTS[variant]}")
    reference = Reference(net, rule.param)
    for step, rate in enumerate(RATES):
        rule.begin(step, rate)
        reference.apply(put_gradients(net, step), rate)
        rule.apply()
        assert all(p.tensor.grad is None for p in net.learnable_params)
    for param, expected in zip(net.learnable_params, reference.values, strict=True):
        np.testing.assert_allclose(param.tensor.detach(), expected, rtol=1e-4, atol=1e-5)
    expected_histories = [*reference.first, *reference.second][
        : rule.num_histories * len(reference.first)
    ]
    found = gather_histories(rule, net.learnable_params)
    for history, expected in zip(found, expected_histories, strict=True):
        np.testing.assert_allclose(history, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", TYPES)
def test_nets_without_parameters_have_nothing_to_update(kind: str) -> None:
    """Caffe trains such nets, of losses alone, as well."""
    settings = f"type: '{kind}' {TYPES[kind]} {VARIANTS['all']}"
    rule = solver_types[kind](parse(settings), [])
    rule.begin(0, 0.1)
    rule.apply()
    rule.log_clipping()
    assert gather_histories(rule, []) == []


@pytest.mark.parametrize("variant", [*VARIANTS, "larc"])
@pytest.mark.parametrize("kind", TYPES)
def test_no_update_waits_for_its_device(kind: str, variant: str) -> None:
    """Without Triton, too, a CUDA graph can have it. Tensors without numbers refuse to be asked."""
    if variant == "larc" and kind != "SGD":
        pytest.skip("LARC is for SGD")
    _, rule = make(kind, f"{TYPES[kind]} {VARIANTS.get(variant, 'larc: true')}")
    rule.begin(0, 0.1)
    for tensors in (rule.tensors, *rule.histories):
        tensors[:] = [tensor.to("meta") for tensor in tensors]
    rule.rate = rule.rate.to("meta")
    if isinstance(rule, Adam):
        rule.correction = rule.correction.to("meta")
    rule.apply_to([torch.empty_like(tensor) for tensor in rule.tensors])


@pytest.mark.parametrize("kind", TYPES)
def test_parts_are_updated_as_the_whole(kind: str) -> None:
    """Each of two ranks moves a part of one weight, and what there is beside."""
    settings = f"{TYPES[kind]} weight_decay: 0.1 iter_size: 4"
    whole, rule = make(kind, settings)
    halves = [make(kind, settings) for _ in range(2)]
    place = next(i for i, p in enumerate(whole.learnable_params) if p.layer.name == "b")
    assert rule.may_set_apart
    weights = [net.learnable_params[place] for net, _ in halves]
    rows = len(weights[0].tensor) // 2
    parts = [slice(rows), slice(rows, None)]
    apart = [
        half.set_apart(weight, lambda tensor, part=part: tensor[part])  # type: ignore[misc]
        for (_, half), weight, part in zip(halves, weights, parts, strict=True)
    ]
    for step, rate in enumerate(RATES):
        rule.begin(step, rate)
        put_gradients(whole, step)
        for (net, half), weight, part, own in zip(halves, weights, parts, apart, strict=True):
            half.begin(step, rate)
            put_gradients(net, step)
            assert weight.tensor.grad is not None
            own.apply_to([weight.tensor.grad[part].clone()])
            half.apply()
        rule.apply()
    for (net, half), weight, part in zip(halves, weights, parts, strict=True):
        for mine, other in zip(net.learnable_params, whole.learnable_params, strict=True):
            inside = part if mine is weight else slice(None)
            torch.testing.assert_close(mine.tensor[inside], other.tensor[inside])
            for moment in range(rule.num_histories):
                history, expected = half.history(mine, moment), rule.history(other, moment)
                assert (history is None) == (expected is None)
                if history is not None and expected is not None:
                    assert history.shape == expected.shape
                    torch.testing.assert_close(history[inside], expected[inside])
        assert len(half.histories_apart()) == rule.num_histories


@pytest.mark.parametrize("settings", ["clip_gradients: 1", "larc: true", "debug_info: true"])
def test_who_looks_at_whole_gradients_sets_nothing_apart(settings: str) -> None:
    assert not make("SGD", settings)[1].may_set_apart
    _, rule = make("SGD")
    rule.keep_squares()
    assert not rule.may_set_apart


@pytest.mark.parametrize("kind", TYPES)
def test_a_decay_of_its_own(kind: str) -> None:
    """SkimCaffe's regularization_type of a parameter, in the place of the solver's."""
    text = NET.replace("decay_mult: 1", "decay_mult: 1 regularization_type: 'L1'")
    text = text.replace("param { }", "param { regularization_type: 'L1' }")
    net = make_net(text)
    for i, param in enumerate(net.learnable_params):
        generator = torch.Generator().manual_seed(i)
        param.tensor.data.copy_(torch.randn(param.tensor.shape, generator=generator))
    settings = f"type: '{kind}' {TYPES[kind]} weight_decay: 0.1"
    own = solver_types[kind](parse(settings), net.learnable_params)
    l1 = parse(f"{settings} regularization_type: 'L1'")
    references = Reference(net, parse(settings)), Reference(net, l1)
    for step, rate in enumerate(RATES):
        own.begin(step, rate)
        gradients = put_gradients(net, step)
        for reference in references:
            reference.apply([gradient.copy() for gradient in gradients], rate)
        own.apply()
    kinds = [param.regularization_type for param in net.learnable_params]
    assert kinds.count("L1") == 2
    for i, param in enumerate(net.learnable_params):
        expected = references[kinds[i] == "L1"].values[i]
        np.testing.assert_allclose(param.tensor.detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_decay_of_another_kind_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel knows one kind; a parameter that a state has a history for may have another."""
    by_kernel: list[int] = []
    monkeypatch.setattr(kernels, "wanted", lambda device: True)
    monkeypatch.setattr(SGD, "_step_by_kernel", lambda self, g: by_kernel.append(len(g)))
    text = NET.replace("lr_mult: 0 }", "lr_mult: 0 regularization_type: 'L1' }", 1)
    params = make_net(text).learnable_params
    rule = SGD(parse("momentum: 0.9 weight_decay: 0.1"), params)
    for param in rule.params:
        param.tensor.grad = torch.zeros_like(param.tensor)
    rule.apply()
    assert by_kernel == [len(rule.params)]
    (late,) = (param for param in params if param.regularization_type == "L1")
    assert late not in rule.params
    rule.track(late)
    rule.apply()
    assert len(by_kernel) == 1


def test_a_decay_of_an_unknown_kind() -> None:
    text = NET.replace("decay_mult: 1", "decay_mult: 1 regularization_type: 'L3'")
    with pytest.raises(CaffeError, match="unknown regularization type 'L3'"):
        solver_types["SGD"](parse("weight_decay: 0.1"), make_net(text).learnable_params)


@pytest.mark.parametrize("policy", ["scale", "clip"])
def test_larc(policy: str) -> None:
    """NVCaffe's rates, which know of an lr_mult only whether it is 0."""
    settings = f"momentum: 0.75 weight_decay: 0.25 larc: true larc_policy: '{policy}' larc_eta: 0.5"
    net, rule = make("SGD", settings)
    specs = [(p.lr_mult, p.decay_mult) for p in net.learnable_params]
    values = [p.tensor.detach().double().numpy().copy() for p in net.learnable_params]
    values[4][:] = 0  # norms of 0 leave the solver's rate
    net.learnable_params[4].tensor.data.zero_()
    histories = [np.zeros_like(value) for value in values]
    for step, rate in enumerate(RATES):
        gradients = put_gradients(net, step)
        for i, (lr_mult, decay_mult) in enumerate(specs):
            if lr_mult == 0:
                continue
            w, g = np.linalg.norm(values[i]), np.linalg.norm(gradients[i])
            own = 0.25 * 0.5 * w / g if w > 0 and g > 0 else 1
            local = min(rate, own) if policy == "clip" else rate * own
            gradient = gradients[i] + 0.25 * decay_mult * values[i]
            histories[i] = 0.75 * histories[i] + local * gradient
            values[i] -= histories[i]
        rule.rate.fill_(rate)
        rule.apply()
    for param, expected in zip(net.learnable_params, values, strict=True):
        np.testing.assert_allclose(param.tensor.detach(), expected, rtol=1e-4, atol=1e-5)


def test_larc_that_cannot_be() -> None:
    for kind, settings, message in (
        ("Nesterov", "", "larc: is for SGD, not for Nesterov"),
        ("Adam", "", "larc: is for SGD, not for Adam"),
        ("SGD", "larc_policy: 'both'", "larc_policy: unknown policy 'both'; known: scale, clip"),
    ):
        with pytest.raises(CaffeError, match=message):
            make(kind, f"larc: true {settings}")


@pytest.mark.parametrize("rate", [1e-3, 1e-7, 1e-10, 1e-14, 1e-20])
def test_small_rates_are_exact(rate: float) -> None:
    """Nets whose loss is a sum over pixels are trained with rates of 1e-10 to 1e-14."""
    net, rule = make("SGD", "momentum: 0.9")
    reference = Reference(net, rule.param)
    for step in range(2):
        rule.rate.fill_(rate)
        reference.apply(put_gradients(net, step), float(np.float32(rate)))
        rule.apply()
    found = gather_histories(rule, net.learnable_params)
    for history, expected in zip(found, reference.first, strict=True):
        assert np.linalg.norm(history - expected) <= 5e-7 * np.linalg.norm(expected)


def test_what_the_test_covers() -> None:
    net, _ = make("SGD")
    assert [p.lr_mult for p in net.learnable_params] == [0, 0, 0, 1, 2, 0, 0, 0, 0, 0.5, 1, 0]
    assert [p.decay_mult for p in net.learnable_params] == [1, 1, 1, 1, 0, 1, 1, 3, 1, 2, 1, 1]
    assert [p.is_mask for p in net.learnable_params] == ([False] * 5 + [True]) + [
        False,
        False,
        True,
    ] * 2


@pytest.mark.parametrize("kind", TYPES)
def test_nothing_that_never_learns_moves(kind: str) -> None:
    net, rule = make(kind, f"{TYPES[kind]} weight_decay: 0.5")
    still = [p for p in net.learnable_params if p.lr_mult == 0]
    before = [p.tensor.clone() for p in still]
    rule.rate.fill_(0.5)
    put_gradients(net, 0)
    rule.apply()
    assert len(still) == 8
    assert all(torch.equal(p.tensor, old) for p, old in zip(still, before, strict=True))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("AdaGrad", "momentum: 0.9", "momentum: momentum cannot be used with AdaGrad"),
        ("RMSProp", "momentum: 0.9", "momentum: momentum cannot be used with RMSProp"),
        ("Adam", "momentum2: 2", "momentum2: must lie in [0, 1), not 2"),
        ("Adam", "momentum: 1", "momentum: must lie in [0, 1), not 1"),
        ("RMSProp", "rms_decay: 1", "rms_decay: must lie in [0, 1), not 1"),
        ("RMSProp", "rms_decay: -0.5", "rms_decay: must lie in [0, 1), not -0.5"),
        ("SGD", "regularization_type: 'L3'", "unknown regularization type 'L3'; known: L1, L2"),
        ("Sgd", "", "unknown solver type 'Sgd'"),
    ],
)
def test_settings_that_cannot_be(kind: str, settings: str, message: str) -> None:
    with pytest.raises(CaffeError) as caught:
        make(kind, settings)
    assert message in str(caught.value)


def test_a_net_without_parameters() -> None:
    net = make_net(input_layer(data=(2, 3)) + layer("relu", "ReLU", "data", "relu"))
    solver_types["SGD"](parse("momentum: 0.9 clip_gradients: 1"), net.learnable_params).apply()


@pytest.mark.parametrize(("kind", "factor"), [("SGD", 0.9), ("Nesterov", 0.95**2)])
def test_a_frozen_parameter_coasts_on_a_restored_history(kind: str, factor: float) -> None:
    net, rule = make(kind, f"{TYPES[kind]} weight_decay: 0.5")
    stored = gather_histories(rule, net.learnable_params)
    frozen = net.learnable_params[6]
    assert (frozen.layer.name, frozen.index, frozen.lr_mult) == ("frozen", 0, 0)
    stored[6] = np.random.default_rng(0).random(stored[6].shape, np.float32)
    restore_histories(rule, net, stored)
    before = frozen.tensor.detach().clone()
    rule.rate.fill_(0.5)
    put_gradients(net, 0)
    rule.apply()
    np.testing.assert_allclose(
        before - frozen.tensor.detach(), factor * stored[6], rtol=1e-4, atol=1e-6
    )
    kept = gather_histories(rule, net.learnable_params)
    np.testing.assert_allclose(kept[6], rule.param.momentum * stored[6], rtol=1e-5)
    assert not kept[7].any()
