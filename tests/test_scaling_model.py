"""tools/benchmarks/scaling_model: what is sent, and how long that takes, against sums by hand."""

from __future__ import annotations

import math
import sys

import pytest

from caffe_dns.net import Net
from tests.nets import input_layer, layer, make_net
from tools.benchmarks import scaling_model as model
from tools.benchmarks.scaling_model import Network, Plan, Transfer

SETTINGS = "inner_product_param {{ num_output: {} bias_term: {} sparsity_term: false }}"
FAST = Network("fast", math.inf, math.inf, 0, 0, 0)


def two_products() -> Net:
    """A small one behind one that is worth its factors for a few ranks; 4 images."""
    text = input_layer(data=(4, 2000))
    text += layer("large", "InnerProduct", "data", "a", SETTINGS.format(1000, "true"))
    return make_net(text + layer("small", "InnerProduct", "a", "b", SETTINGS.format(10, "false")))


@pytest.mark.parametrize(("precision", "row"), [("tf32", 4), ("bf16", 2)])
def test_factors_of_large_products_and_means_of_the_rest(precision: str, row: int) -> None:
    planned = model.plan(two_products(), precision, 2)
    first, second, third = planned.transfers
    whole = 2000 * 1000 + 1000 * 10
    # The rows go when the layer's backward begins; the means when the large layer has its bias's.
    assert first.ready == pytest.approx(10_000 / whole)
    assert (first.size, first.copies(2), first.copies(8)) == (4 * 3000 * row, 1, 7)
    # Then go the weights, of which each rank has multiplied and updated a part.
    assert (second.ready, second.size) == (pytest.approx(1), 4 * 2000 * 1000)
    assert (second.copies(2), second.copies(8)) == (1 / 2, 7 / 8)
    assert (planned.products, planned.in_parts) == (0, 2000 * 1000)
    assert third.ready == pytest.approx(1)
    assert (third.size, third.copies(2), third.copies(4)) == (4 * (10_000 + 1000), 1, 1.5)


def test_all_ranks_multiply_all_rows_of_what_has_no_even_parts() -> None:
    planned = model.plan(two_products(), "tf32", 3)
    assert [transfer.size for transfer in planned.transfers] == [4 * 3000 * 4, 4 * 11_000]
    assert planned.products == pytest.approx(1e6 / (2000 * 1000 + 1000 * 10))


def test_many_ranks_average_everything() -> None:
    transfers = model.plan(two_products(), "tf32", 1024).transfers
    assert sum(transfer.size for transfer in transfers) == 4 * (2000 * 1000 + 1000 + 10_000)
    assert all(transfer.copies(1024) == 2 * 1023 / 1024 for transfer in transfers)


def test_what_is_sent_meanwhile_costs_nothing_and_the_rest_does() -> None:
    slow = Network("slow", within=100.0, between=10.0, hop_within=0, hop_between=0, message=0)

    def seconds(gpus: int, *transfers: tuple[float, float]) -> float:
        sent = [Transfer(ready, size, lambda n: 1) for ready, size in transfers]
        return model.iteration(Plan(sent, 0), 3.0, gpus, slow) - 1.0  # without forward

    assert seconds(2) == pytest.approx(2)
    assert seconds(2, (0.5, 90)) == pytest.approx(2)
    # From its half on, 1 s, then the next one waits for it; both have their start besides.
    assert seconds(2, (0.5, 100), (0.6, 50)) == pytest.approx(1 + 1 + 0.5 + 2 * model.START)
    # Hosts are ten times further apart.
    assert seconds(16, (0.5, 90)) == pytest.approx(1 + 9 + model.START)


def test_products_of_all_rows_come_on_top() -> None:
    assert model.iteration(Plan([], 0.1), 3.0, 4, FAST) == pytest.approx(3 + 3 * 0.1 * 2)


def test_updates_of_parts_take_less() -> None:
    numbers = round(model.MEMORY / model.UPDATE)  # a second, for the whole
    assert model.iteration(Plan([], 0, numbers), 3.0, 4, FAST) == pytest.approx(3 - 3 / 4)


def test_the_slowest_of_several() -> None:
    assert model.slowest(1) == pytest.approx(0, abs=1e-9)
    assert model.slowest(2) == pytest.approx(1 / math.sqrt(math.pi), rel=1e-3)
    assert model.slowest(3) == pytest.approx(1.5 / math.sqrt(math.pi), rel=1e-3)


def test_two_gpus_have_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "MEASURED", "lenet")
    monkeypatch.setattr(model, "RATES", {("lenet", "tf32"): 3e5, ("lenet", "bf16"): 2e5})
    words = ["tool", "--gpus", "2", "64", "--two-gpus", "tf32=0.6", "bf16=0.7"]
    monkeypatch.setattr(sys, "argv", words)
    model.main()
    first, *others = capsys.readouterr().out.splitlines()[-1 - len(model.NETWORKS) :]
    assert first == "| lenet, 64 | one host | 2 | 2 | 0.600 | 0.700 |"
    for line, network in zip(others, model.NETWORKS, strict=True):
        title, name, gpus, _, tf32, _ = line.strip("| ").split(" | ")
        assert (title, name, gpus) == ("lenet, 64", network.name, "64")
        worst, best = map(float, tf32.split(" to "))
        assert 0 < worst < best < 0.6
