"""Surgery to a share of the multiply-accumulates, against plain loops over sorted numbers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.reports.summary import summarize
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.stages import plan
from caffe_dns.surgery.surgeon import Surgeon
from tests.nets import input_layer, layer, make_net, recorded_log
from tests.solver.harness import make_solver, small_net, whole_and_resumed
from tests.surgery.test_surgeon import FILLED, make_surgeon
from tests.surgery.test_target import distances, disturb, mask_of, shares

STAGE = "lr_policy: 'fixed' surgery_stage {{ iterations: 100 interval: 20 end_iter: 60 {} }}"
#: What a weight of each layer costs for one item: the height times the width of its top.
USES = {"wide": 8 * 7, "narrow": 3 * 3, "flat": 1}
WEIGHTS = {"wide": 4 * 3 * 9, "narrow": 6 * 4 * 9, "flat": 5 * 54}
DENSE = sum(USES[name] * WEIGHTS[name] for name in USES)
#: A layer without masks, at the end.
FREE = 4 * 5


def net_text(kind: str) -> str:
    prefix = "C" if kind == "official" else ""

    def conv(name: str, bottom: str, outputs: int, stride: int) -> str:
        settings = f"num_output: {outputs} kernel_size: 3 stride: {stride} {FILLED}"
        return layer(
            name, f"{prefix}Convolution", bottom, name, f"convolution_param {{ {settings} }}"
        )

    def ip(name: str, bottom: str, kind: str, settings: str) -> str:
        return layer(name, kind, bottom, name, f"inner_product_param {{ {settings} {FILLED} }}")

    return (
        input_layer(data=(2, 3, 10, 9))
        + conv("wide", "data", 4, 1)
        + conv("narrow", "wide", 6, 2)
        + ip("flat", "narrow", f"{prefix}InnerProduct", "num_output: 5")
        + ip("free", "flat", "InnerProduct", "num_output: 4 sparsity_term: false")
    )


def surgeon_of(kind: str, stage: str) -> tuple[Net, Surgeon]:
    return make_surgeon(net_text(kind), STAGE.format(stage))


def best(net: Net, names: list[str], kind: str, budget: float) -> dict[str, np.ndarray]:
    """The masks that fill a budget of MACs, for one item, by the value per cost of parameters."""
    found = []
    for name in names:
        mask = mask_of(net, name, kind)
        strengths = distances(net, name, kind) / np.where(mask == 1, 0.9, 1.1)
        scores = shares(strengths) / USES[name]
        scores[strengths.argmax()] = np.inf
        found += [(score, name, place) for place, score in enumerate(scores)]
    masks = {name: np.zeros(mask_of(net, name, kind).size) for name in names}
    spent = 0
    for _, name, place in sorted(found, reverse=True):
        spent += USES[name] if place < WEIGHTS[name] else 0  # biases come after the weights
        if spent > budget:
            break
        masks[name][place] = 1
    return masks


def macs_left(net: Net, kind: str) -> int:
    """MACs for one item of the layers with masks."""
    return sum(
        int(mask_of(net, name, kind)[: WEIGHTS[name]].sum()) * uses for name, uses in USES.items()
    )


@pytest.mark.parametrize("kind", ["official", "deviation"])
@pytest.mark.parametrize("share", [0.3, 0.05])
def test_the_best_parameters_for_their_cost_are_kept(kind: str, share: float) -> None:
    net, surgeon = surgeon_of(kind, f"macs: {share}")
    for iteration in range(0, 100, 10):
        disturb(net, iteration)
        expected = {name: mask_of(net, name, kind) for name in USES}
        if iteration in (0, 20, 40, 60):
            # In whole multiplications, for the two items of a batch.
            end = int(2 * share * (DENSE + FREE)) - 2 * FREE
            budget = round(end + (2 * DENSE - end) * (1 - iteration / 60) ** 3)
            expected = best(net, list(USES), kind, budget / 2)
        surgeon.update_masks(iteration)
        for name, mask in expected.items():
            np.testing.assert_array_equal(mask_of(net, name, kind), mask)
    left = macs_left(net, kind) + FREE
    assert 0 <= share * (DENSE + FREE) - left < max(USES.values())
    assert surgeon.macs_kept() == (left, DENSE + FREE)
    rows = summarize(net)
    assert (sum(r.macs_kept for r in rows), sum(r.macs for r in rows)) == (left, DENSE + FREE)
    with recorded_log() as messages:
        surgeon.display()
    (line,) = (message for message in messages if message.startswith("MACs"))
    found = re.fullmatch(r"MACs kept: (\d+) of (\d+) for one item, (\S+) of them", line)
    assert found is not None
    assert (int(found[1]), int(found[2])) == (left, DENSE + FREE)
    assert float(found[3]) == pytest.approx(left / (DENSE + FREE), rel=1e-4)


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_other_layers_keep_their_masks(kind: str) -> None:
    net, surgeon = surgeon_of(kind, "macs: 0.4 layer { name: 'wide' } layer { name: 'flat' }")
    net.params["narrow"][2].view(-1)[::2] = 0
    for iteration in range(61):
        disturb(net, iteration)
        surgeon.update_masks(iteration)
    assert mask_of(net, "narrow", kind)[: WEIGHTS["narrow"]].sum() == WEIGHTS["narrow"] / 2
    left = macs_left(net, kind) + FREE
    assert 0 <= 0.4 * (DENSE + FREE) - left < USES["wide"]


def test_no_layer_is_emptied() -> None:
    """Not even the one whose weights cost most, where nearly nothing may be left."""
    least = FREE + sum(USES.values())
    net, surgeon = surgeon_of("deviation", f"macs: {(least + 0.5) / (DENSE + FREE)}")
    for iteration in range(61):
        disturb(net, iteration)
        surgeon.update_masks(iteration)
    assert [mask_of(net, name, "deviation").sum() for name in USES] == [1, 1, 1]


def test_weights_that_two_layers_share_cost_both() -> None:
    text = input_layer(data=(2, 3, 10, 9))
    for name, stride in (("one", 1), ("two", 2)):
        settings = f"num_output: 4 kernel_size: 3 stride: {stride} {FILLED}"
        params = " ".join(f"param {{ name: '{blob}' }}" for blob in "wbm")
        text += layer(
            name, "Convolution", "data", name, f"{params} convolution_param {{ {settings} }}"
        )
    net = make_net(text)
    surgeon = Surgeon.of_net(net, plan(SolverParameter(lr_policy="fixed", max_iter=1)), 1)
    assert surgeon.macs_kept() == (4 * 27 * (8 * 7 + 4 * 4), 4 * 27 * (8 * 7 + 4 * 4))
    net.params["one"][2].view(-1)[:27] = 0
    assert surgeon.macs_kept()[0] == 3 * 27 * (8 * 7 + 4 * 4)


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_a_share_out_of_reach(kind: str) -> None:
    with pytest.raises(CaffeError) as error:
        surgeon_of(kind, "macs: 0.01")
    in_any_case, least = FREE / (DENSE + FREE), (FREE + sum(USES.values())) / (DENSE + FREE)
    possible = np.ceil(least * 1e4) / 1e4
    assert str(error.value) == (
        "surgery_stage[0].macs: 0.01 of the multiply-accumulates is out of reach: "
        f"{in_any_case:.4g} of them stay in any case, and a weight of each layer; "
        f"at least {possible:g}"
    )
    assert possible > 0.01
    surgeon_of(kind, f"macs: {possible}")


STAGES = """
display: 1 max_iter: 14
surgery_stage { iterations: 3 }
surgery_stage { iterations: 9 macs: 0.3 interval: 2 end_iter: 7 }
surgery_stage { iterations: 2 surgery: false }
"""
CONV = """
layer { name: "conv" type: "KINDConvolution" bottom: "pool" top: "conv"
  convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } } }
"""


def solver_of(folder: Path, kind: str, stages: str = STAGES) -> Solver:
    # A convolution between the pooling and the inner products.
    text = small_net(kind=f"{kind}InnerProduct").replace(
        'bottom: "pool" top: "ip1"', 'bottom: "conv" top: "ip1"'
    )
    place = text.index('layer { name: "ip1"')
    text = text[:place] + CONV.replace("KIND", kind) + text[place:]
    return make_solver(folder, stages, text)


@pytest.mark.parametrize("kind", ["", "C"])
def test_a_resumed_run_is_the_same(tmp_path: Path, kind: str) -> None:
    whole, second = whole_and_resumed(lambda folder: solver_of(folder, kind), tmp_path, 8, 14)
    assert whole.surgeon is not None and second.surgeon is not None
    kept, macs = whole.surgeon.macs_kept()
    assert macs == 27 * 25 + 12 * 75 + 120
    assert 0 <= 0.3 * macs - kept < 25
    assert (kept, macs) == second.surgeon.macs_kept()
    assert not torch.equal(
        whole.net.params["conv"][2], torch.ones_like(whole.net.params["conv"][2])
    )
