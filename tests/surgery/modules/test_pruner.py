"""Surgery on modules, against loops that mask in the forward pass and keep the weights whole."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import optimizer as torch_optimizer

import caffe_dns
from caffe_dns import mask_rules
from caffe_dns.surgery.modules import Pruner
from tests.surgery.modules.models import (
    LanguageModel,
    ResNet,
    images,
    sentences,
    tiny,
    tiny_batch,
    train,
)


def cross_entropy(model: nn.Module, data: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(model(data), wanted)


Step = Callable[[Callable[[], Tensor]], None]
Make = Callable[[list[nn.Parameter]], Step]


def by(kind: type[torch.optim.Optimizer], **settings: Any) -> Make:
    """How an optimizer of this kind makes a step, given what computes the loss."""

    def make(parameters: list[nn.Parameter]) -> Step:
        optimizer = kind(parameters, **settings)

        def step(loss: Callable[[], Tensor]) -> None:
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()

        return step

    return make


def by_closure(parameters: list[nn.Parameter]) -> Step:
    optimizer = torch.optim.LBFGS(parameters, lr=0.3, max_iter=3)

    def step(loss: Callable[[], Tensor]) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(closure)

    return step


def by_hand(parameters: list[nn.Parameter]) -> Step:
    def step(loss: Callable[[], Tensor]) -> None:
        for parameter in parameters:
            parameter.grad = None
        loss().backward()
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.data -= 0.1 * parameter.grad

    return step


class Reference:
    """The tiny model with whole weights, masked in the forward pass; gradients reach all."""

    def __init__(self, make: Make) -> None:
        self.model = tiny()
        self.masks = {
            name: torch.ones_like(parameter)
            for name, parameter in self.model.named_parameters()
            if name.endswith("weight")
        }
        self._step = make(list(self.model.parameters()))

    def masked(self) -> dict[str, Tensor]:
        return {
            name: mask_rules.masked(p, self.masks[name]) if name in self.masks else p
            for name, p in self.model.named_parameters()
        }

    def step(self, number: int) -> None:
        data, wanted = tiny_batch(number)
        self._step(
            lambda: F.cross_entropy(functional_call(self.model, self.masked(), (data,)), wanted)
        )


MAKERS = {
    "sgd": by(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.05),
    "adamw": by(torch.optim.AdamW, lr=0.02, weight_decay=0.3),
    "lbfgs": by_closure,
    "hand": by_hand,
}


@pytest.mark.parametrize("name", MAKERS)
def test_pruned_weights_go_on_learning_and_decaying(name: str) -> None:
    reference = Reference(MAKERS[name])
    model = tiny()
    # (1 + 1 * step) ^ 0: renewed at every step before the 9th.
    pruner = caffe_dns.prune(model, threshold={"0": 0.5, "3": 0.9}, steps=12, end=9, power=0)
    step = MAKERS[name](list(model.parameters()))
    thresholds = {"0.weight": 0.5, "3.weight": 0.9}
    came_back = 0
    for number in range(12):
        if number < 9:
            for weight, mask in reference.masks.items():
                dense = reference.model.get_parameter(weight).detach()
                distance = (dense - dense.mean()).abs()
                kept = distance >= thresholds[weight] * dense.std(correction=0)
                came_back += int((kept & (mask == 0)).sum())
                mask.copy_(kept)
        for weight, kept in pruner.masks().items():
            assert torch.equal(kept, reference.masks[weight] != 0), (number, weight)
        for weight, value in reference.masked().items():
            torch.testing.assert_close(model.get_parameter(weight), value, atol=1e-12, rtol=1e-9)
        data, wanted = tiny_batch(number)
        step(partial(cross_entropy, model, data, wanted))
        pruner.step()
        reference.step(number)
    assert came_back > 0


def test_the_rule_by_magnitude() -> None:
    """mu and sigma of weight and bias together, at the beginning; hysteresis from 0.9 to 1.1."""
    model = tiny()
    layer = model[0]
    pruner = caffe_dns.prune(model, c_rate={"0": 0.2}, steps=9, end=6, power=0)
    begin = tiny()[0]
    values = torch.cat([begin.weight.detach().ravel(), begin.bias.detach()]).abs()
    mu, sigma = (float(v.float()) for v in (values.mean(), values.std(correction=0)))
    limit = mu + 0.2 * sigma
    whole = [begin.weight.detach().clone(), begin.bias.detach().clone()]
    masks = [torch.ones_like(value) for value in whole]
    for number in range(8):
        if number < 6:
            for value, mask in zip(whole, masks, strict=True):
                mask[value.abs() <= 0.9 * limit] = 0
                mask[value.abs() > 1.1 * limit] = 1
        found = pruner.masks()
        assert list(found) == ["0.weight", "0.bias"]
        for parameter, value, mask, kept in zip(
            (layer.weight, layer.bias), whole, masks, found.values(), strict=True
        ):
            assert torch.equal(kept, mask != 0)
            torch.testing.assert_close(parameter.detach(), value * mask, atol=1e-12, rtol=0)
        assert 0 < sum(int(mask.sum()) for mask in masks) < 76
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
        data, wanted = tiny_batch(number)
        optimizer.zero_grad()
        F.cross_entropy(model(data), wanted).backward()
        optimizer.step()
        pruner.step()
        for value, parameter in zip(whole, (layer.weight, layer.bias), strict=True):
            value -= 0.3 * parameter.grad


@pytest.mark.parametrize(("rule", "kept"), [("magnitude", 19), ("deviation", 18)])
def test_sparsity_of_one_layer(rule: str, kept: int) -> None:
    """Exactly the largest stay: of weights and biases, or of distances from the mean."""
    model = tiny()
    pruner = caffe_dns.prune(model, sparsity={"0": 0.75}, steps=40, interval=5, end=20, rule=rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    numbers = []
    for _ in range(40):
        numbers.append(pruner.counts()[0].kept)
        optimizer.step()
        pruner.step()
    size = 76 if rule == "magnitude" else 72
    progress = [min(number // 5 * 5, 20) / 20 for number in range(40)]
    assert numbers == [round(kept + (size - kept) * (1 - p) ** 3) for p in progress]
    begin = tiny()[0]
    values = begin.weight.detach().ravel()
    if rule == "magnitude":
        values = torch.cat([values, begin.bias.detach()])
    else:
        values = values - values.mean()
    largest = torch.zeros(size, dtype=torch.bool)
    largest[values.abs().topk(kept).indices] = True
    assert torch.equal(torch.cat([mask.ravel() for mask in pruner.masks().values()]), largest)


def test_a_resnet_becomes_small_and_stays_good() -> None:
    torch.manual_seed(0)
    model = ResNet()
    pruner = caffe_dns.prune(model, compression=6, steps=60, interval=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    assert train(model, optimizer, 60, images(), pruner.step) < 0.1
    parameters = sum(p.numel() for p in model.parameters())
    blocks = [f"layer1.{i}.{name}" for i in (0, 1) for name in ("conv1", "conv2", "downsample.0")]
    layers = ["conv1", *blocks, "fc"]
    *lines, not_pruned, whole = pruner.report().splitlines()
    assert [line.split()[1].rstrip(":") for line in lines] == layers
    others = 2 * (8 + 3 * 8 + 3 * 16)  # the weights and biases of the batch norms
    assert not_pruned == f"Not pruned: {others} of BatchNorm2d"
    left = sum(count.kept for count in pruner.counts()) + others
    assert left == parameters // 6
    assert whole == f"Kept in all: {left} of {parameters} parameters (6.0 times smaller)"
    assert lines[0].startswith("Kept conv1: ") and lines[0].endswith(" %)")
    pruned = pruner.apply()
    assert pruned is model
    assert F.cross_entropy(model(images()[0]), images()[1]) < 0.1


def test_a_transformer_with_a_tied_weight() -> None:
    torch.manual_seed(0)
    model = LanguageModel()
    pruner = caffe_dns.prune(model, sparsity=0.6, steps=80, interval=5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    assert train(model, optimizer, 80, sentences(), pruner.step) < 0.5
    counts = pruner.counts()
    assert [count.name for count in counts] == [
        "attention.in_proj_weight",
        "attention.out_proj",
        "mlp.0",
        "mlp.2",
        "head",
    ]
    total = sum(count.total for count in counts)
    assert sum(count.kept for count in counts) == int(0.4 * total + 1e-6)
    assert torch.equal(model.embed.weight != 0, pruner.masks()["embed.weight"])


@pytest.mark.parametrize("kind", ["compression", "threshold", "c_rate"])
def test_a_run_that_is_resumed_ends_bit_for_bit(kind: str) -> None:
    amount = {"compression": 4, "threshold": 0.5, "c_rate": 0.3}[kind]

    def begin() -> tuple[nn.Module, torch.optim.Optimizer, Pruner]:
        torch.manual_seed(0)
        model = ResNet()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
        pruner = caffe_dns.prune(
            model,
            steps=40,
            interval=4,
            gamma=0.1,
            seed=3,
            **{kind: amount},  # type: ignore[arg-type]
        )
        return model, optimizer, pruner

    model, optimizer, pruner = begin()
    train(model, optimizer, 30, images(), pruner.step)
    first, second, third = begin()
    train(first, second, 13, images(), third.step)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in (first, second, third)], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    resumed: tuple[Any, Any, Any] = begin()
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    train(resumed[0], resumed[1], 17, images(), resumed[2].step)
    assert resumed[2].iteration == pruner.iteration == 30
    for name, value in model.state_dict().items():
        assert torch.equal(resumed[0].state_dict()[name], value), name
    for part in ("masks", "pruned"):
        for name, value in pruner.state_dict()[part].items():
            assert torch.equal(resumed[2].state_dict()[part][name], value), (part, name)
    assert resumed[2].state_dict()["layers"] == pruner.state_dict()["layers"]


def test_states_of_other_models_change_nothing() -> None:
    model = tiny()
    pruner = caffe_dns.prune(model, sparsity=0.5, steps=10)
    before = copy.deepcopy(pruner.state_dict())
    other = caffe_dns.prune(ResNet(), sparsity=0.5, steps=10).state_dict()
    states: list[tuple[Any, str]] = [
        (None, "is not the state of a pruner, but of type NoneType"),
        ({"iteration": 3}, "is not the state of a pruner: it has no 'layers'"),
        (other, "the state has no '0.weight': it is of another model"),
        (
            {**before, "masks": {**before["masks"], "3.bias": torch.ones(4)}},
            "'3.bias' has the shape (3,), in the state (4,)",
        ),
        (
            {**before, "masks": {**before["masks"], "x": torch.ones(4)}},
            "the state has 'x', which is not pruned here",
        ),
    ]
    for state, message in states:
        with pytest.raises(ValueError) as caught:
            pruner.load_state_dict(state)
        assert str(caught.value) == message
    assert pruner.iteration == 0
    for name, mask in pruner.masks().items():
        assert torch.equal(mask, before["masks"][name])


@pytest.fixture
def hooks() -> Iterator[dict[int, Any]]:
    """What is called before the steps of all optimizers; nothing of ours remains there."""
    gc.collect()
    found: dict[int, Any] = torch_optimizer._global_optimizer_pre_hooks
    before = dict(found)
    yield found
    gc.collect()
    assert dict(found) == before


def test_applied_for_good(hooks: dict[int, Any]) -> None:
    model = tiny()
    pruner = caffe_dns.prune(model, sparsity=0.5, steps=10, end=0)
    kept = {name: mask.clone() for name, mask in pruner.masks().items()}
    before = len(hooks)
    assert pruner.apply() is model
    assert len(hooks) == before - 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for name, mask in kept.items():
        assert torch.equal(model.get_parameter(name) != 0, mask)
    train(model, optimizer, 1, tiny_batch(0), lambda: None)
    assert all(bool((model.get_parameter(name) != 0).all()) for name in kept)
    with pytest.raises(ValueError, match="the masks were applied for good; prune again to go on"):
        pruner.step()


def test_a_pruner_that_nobody_holds_is_gone(hooks: dict[int, Any]) -> None:
    before = len(hooks)
    caffe_dns.prune(tiny(), sparsity=0.5, steps=10)
    gc.collect()
    assert len(hooks) == before


@pytest.mark.parametrize("use", [copy.deepcopy, pickle.dumps])
def test_a_pruner_is_not_copied(use: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"a pruner cannot be copied or pickled: take its state_d"):
        use(caffe_dns.prune(tiny(), sparsity=0.5, steps=10))


def test_parameters_that_the_model_has_no_more() -> None:
    model = tiny()
    pruner = caffe_dns.prune(model, sparsity=0.5, steps=10, interval=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.load_state_dict(tiny().state_dict(), assign=True)
    train(model, optimizer, 1, tiny_batch(0), pruner.step)
    for use in (pruner.step, pruner.state_dict, pruner.apply):
        with pytest.raises(ValueError, match=r"'0\.weight' is not the parameter any more that it"):
            use()


def test_other_models_and_halves_of_one() -> None:
    """An optimizer of another model changes nothing; one of half of the model prunes it all."""
    model, other = tiny(), tiny()
    pruner = caffe_dns.prune(model, sparsity=0.5, steps=10, end=0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), 1, tiny_batch(0), lambda: None)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    half = torch.optim.SGD(model[3].parameters(), lr=0.1)
    train(model, half, 2, tiny_batch(0), lambda: None)
    for name, mask in pruner.masks().items():
        assert not model.get_parameter(name)[~mask].any()


def test_zeros_are_pruned_from_the_beginning() -> None:
    def begin() -> nn.Module:
        model = tiny()
        with torch.no_grad():
            model[3].weight[:, ::2] = 0
        return model

    counts = caffe_dns.prune(begin(), sparsity={"3": 0.75}, steps=10, start=2).counts()
    assert [(count.kept, count.total) for count in counts] == [(195, 195)]
    counts = caffe_dns.prune(
        begin(), sparsity={"3": 0.75}, steps=10, start=2, from_zeros=True
    ).counts()
    assert [(count.kept, count.total) for count in counts] == [(99, 195)]
