"""Gradients of inner products from the rows of all ranks, with another rank that is imagined."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.parallel import sufficient_factors as factors
from caffe_dns.parallel.averaging import GradientAverage
from caffe_dns.parallel.ranks import Ranks
from caffe_dns.parallel.sufficient_factors import share_gradients
from tests.nets import input_layer, layer, make_net

SHAPE = (2, 3, 50, 4)
SETTINGS = "num_output: 40 weight_filler { type: 'xavier' } bias_filler { type: 'uniform' }"
LOSS = "layer { name: 'loss' type: 'Reduction' bottom: 'b' top: 'loss' loss_weight: 1 "
LOSS += "reduction_param { operation: SUMSQ } }"


class Twins(Ranks):
    """This rank and another one, whose rows are the same times 3."""

    size = local_size = 2

    def __init__(self) -> None:
        self.averaged: list[str] = []
        self.sent: list[tuple[int, ...]] = []
        self.completed: list[Tensor] = []

    def average(self, params: Sequence[Param]) -> GradientAverage | None:
        self.averaged = [f"{param.layer.name}/{param.index}" for param in params]
        return None

    def start_gathering(self, values: Tensor) -> Callable[[], Tensor]:
        self.sent.append(tuple(values.shape))
        return lambda: torch.cat([values, 3 * values])

    def part_of(self, tensor: Tensor) -> Tensor:
        return tensor.chunk(2)[0]

    def start_completing(self, tensor: Tensor) -> Callable[[], Tensor]:
        self.completed.append(tensor)
        return lambda: tensor


class Rule:
    """Notes what it is to update, and with which gradients."""

    def __init__(self, *, may_set_apart: bool = False) -> None:
        self.may_set_apart = may_set_apart
        self.apart: list[str] = []
        self.gradients: list[Tensor] = []

    def set_apart(self, param: Param, part: Callable[[Tensor], Tensor]) -> Rule:
        self.apart.append(f"{param.layer.name}/{param.index}")
        return self

    def apply_to(self, gradients: list[Tensor]) -> None:
        self.gradients += gradients


def inner_product(bottom: str, settings: str = "", more: str = "") -> str:
    settings = f"inner_product_param {{ {SETTINGS} {settings} }} {more}"
    return layer("ip", "InnerProduct", bottom, "a", settings)


def net_of(text: str) -> Net:
    text += layer("tanh", "TanH", "a", "b") + LOSS
    net = make_net(input_layer(data=SHAPE) + text).double()
    for param in net.learnable_params:
        if param.is_mask:
            param.tensor.view(-1)[::2] = 0
    return net


def gradients(net: Net, deferred: factors.SufficientFactors | None) -> dict[str, Tensor]:
    """Those of the two passes of an iteration."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    net.context.deferred_gradients = deferred
    for param in net.learnable_params:
        param.tensor.grad = None
    for number in range(2):
        if deferred is not None and number == 1:
            deferred.arm()
        net.loss(net.compute({"data": data})).backward()
        if deferred is not None:
            deferred.join()
    if deferred is not None:
        deferred.drop()
    found = {f"{p.layer.name}/{p.index}": p.tensor.grad for p in net.learnable_params}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


KINDS = [
    (inner_product("data"), [(2, 40), (2, 600)]),
    (inner_product("data", "transpose: true"), [(2, 40), (2, 600)]),
    (inner_product("data", "axis: 2"), [(6, 40), (6, 200)]),
    (inner_product("data", "bias_term: false sparsity_term: false"), [(2, 40), (2, 600)]),
]


@pytest.mark.parametrize(("text", "rows"), KINDS)
def test_a_gradient_is_the_mean_of_those_of_all_ranks(
    text: str, rows: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "LARGE", 8000)
    net = net_of(text)
    alone = gradients(net, None)
    ranks = Twins()
    _, exchange = share_gradients(net, ranks, Rule())
    assert exchange is not None
    together = gradients(net, exchange)
    # (x * g + 3 * x * 3 * g) / 2
    torch.testing.assert_close(together["ip/0"], 5 * alone["ip/0"])
    assert together["ip/0"].stride() == alone["ip/0"].stride()
    assert ranks.sent == 2 * rows
    # The others are for the average.
    assert together.keys() == alone.keys()
    others = [name for name in alone if name != "ip/0"]
    for name in others:
        torch.testing.assert_close(together[name], alone[name])
    assert set(others) <= set(ranks.averaged)
    assert "ip/0" not in ranks.averaged


@pytest.mark.parametrize(("text", "rows"), KINDS)
def test_each_rank_updates_a_part(
    text: str, rows: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "LARGE", 8000)
    net = net_of(text)
    alone = gradients(net, None)
    ranks, rule = Twins(), Rule(may_set_apart=True)
    _, exchange = share_gradients(net, ranks, rule)
    assert rule.apart == ["ip/0"]
    for number in range(2):  # nothing stays behind
        together = gradients(net, exchange)
        assert together.keys() == alone.keys() - {"ip/0"}
        weight = next(p.tensor for p in net.learnable_params if p.layer.name == "ip")
        assert [t.data_ptr() for t in ranks.completed] == [weight.data_ptr()] * (number + 1)
        assert len(rule.gradients) == number + 1
        torch.testing.assert_close(rule.gradients[-1], 5 * ranks.part_of(alone["ip/0"]))
    assert ranks.sent == 4 * rows


@pytest.mark.parametrize("may_set_apart", [False, True])
def test_more_rows_pay_in_parts(may_set_apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights come after them, which are half of what an average moves."""
    monkeypatch.setattr(factors, "LARGE", 2000)
    # 12 rows of 16 + 200 numbers, for a weight of 3,200.
    net = net_of(inner_product("data", "axis: 2").replace("num_output: 40", "num_output: 16"))
    rule = Rule(may_set_apart=may_set_apart)
    assert (share_gradients(net, Twins(), rule)[1] is not None) == may_set_apart


def test_ranks_of_several_hosts_send_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "LARGE", 8000)
    ranks, rule = Twins(), Rule(may_set_apart=True)
    ranks.local_size = 1
    _, exchange = share_gradients(net_of(inner_product("data")), ranks, rule)
    assert exchange is not None
    assert not rule.apart


def test_a_weight_without_even_parts_is_updated_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "LARGE", 8000)
    net = net_of(inner_product("data").replace("num_output: 40", "num_output: 41"))
    ranks, rule = Twins(), Rule(may_set_apart=True)
    _, exchange = share_gradients(net, ranks, rule)
    assert not rule.apart
    assert "ip/0" in gradients(net, exchange)
    assert not ranks.completed


@pytest.mark.parametrize(
    "text",
    [
        inner_product("data").replace("40", "10"),  # too small
        inner_product("data", "axis: 3"),  # too many rows
        inner_product("data", more="param { lr_mult: 0 }"),
        inner_product("data", more="param { name: 'shared' }")
        + inner_product("data", more="param { name: 'shared' }").replace("'ip'", "'again'")
        .replace("top: 'a'", "top: 'c'"),
    ],
)  # fmt: skip
def test_other_gradients_are_averaged(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "LARGE", 8000)
    ranks = Twins()
    assert share_gradients(net_of(text), ranks, Rule())[1] is None
    assert "ip/0" in ranks.averaged


def test_ranks_that_compute_differently_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "LARGE", 8000)
    ranks = Twins()
    ranks.are_alike = False
    assert share_gradients(net_of(inner_product("data")), ranks, Rule())[1] is None


def test_a_batch_of_another_size_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factors, "LARGE", 8000)
    net = net_of(inner_product("data"))
    net.context.deferred_gradients = share_gradients(net, Twins(), Rule())[1]
    loss = net.loss(net.forward({"data": torch.ones(3, *SHAPE[1:])}))
    with pytest.raises(CaffeError, match="3 rows to multiply, not 2"):
        loss.backward()
