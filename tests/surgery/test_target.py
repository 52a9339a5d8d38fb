"""Surgery to a given sparsity: what is kept when, against plain loops over sorted numbers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SurgeryMoments
from caffe_dns.solver.solver import Solver
from caffe_dns.surgery.surgeon import Surgeon
from tests.solver.harness import make_solver, small_net, whole_and_resumed
from tests.surgery.test_surgeon import GUO, HOLMES, make_surgeon

STAGE = "lr_policy: 'fixed' surgery_stage {{ iterations: 100 interval: 20 end_iter: 60 {} }}"
#: Parameters with a mask, biases included in the official kind's.
SIZES = {"official": {"conv": 112, "a": 294}, "deviation": {"conv": 108, "a": 288}}
NETS = {"official": GUO, "deviation": HOLMES}


def surgeon_of(kind: str, stage: str) -> tuple[Net, Surgeon]:
    return make_surgeon(NETS[kind], STAGE.format(stage))


def distances(net: Net, name: str, kind: str) -> np.ndarray:
    """What the kind's threshold is compared with, weight before bias, as one row."""
    weight, bias = (blob.detach().double().numpy() for blob in net.params[name][:2])
    if kind == "deviation":
        return np.abs(weight - weight.mean()).ravel()
    return np.abs(np.concatenate([weight.ravel(), bias.ravel()]))


def mask_of(net: Net, name: str, kind: str) -> np.ndarray:
    count = 1 if kind == "deviation" else 2
    return np.concatenate([m.numpy().ravel() for m in net.params[name][2 : 2 + count]])


def shares(values: np.ndarray) -> np.ndarray:
    """The square of each over the sum of the squares of all that are no smaller."""
    squares = values**2
    return np.array([square / squares[squares >= square].sum() for square in squares])


def strongest(net: Net, names: list[str], kind: str, count: int) -> dict[str, np.ndarray]:
    """The masks that keep `count` of these layers' parameters, ranked by their shares."""
    found = []
    for name in names:
        mask = mask_of(net, name, kind)
        strengths = np.where(mask == 1, distances(net, name, kind) / 0.9, 0)
        strengths = np.where(mask == 0, distances(net, name, kind) / 1.1, strengths)
        found += [(share, name, place) for place, share in enumerate(shares(strengths))]
    masks = {name: np.zeros(mask_of(net, name, kind).size) for name in names}
    for _, name, place in sorted(found, reverse=True)[:count]:
        masks[name][place] = 1
    return masks


def disturb(net: Net, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in net.learnable_params:
        if not param.is_mask:
            param.tensor.data.normal_(generator=generator).mul_(1 + len(param.layer.name))


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_the_strongest_parameters_of_all_layers_are_kept(kind: str) -> None:
    net, surgeon = surgeon_of(kind, "sparsity: 0.9")
    total = sum(SIZES[kind].values())
    for iteration in range(100):
        due = iteration in (0, 20, 40, 60)
        disturb(net, iteration)
        last = total // 10
        wanted = round(last + (total - last) * (1 - min(iteration / 60, 1)) ** 3)
        expected = strongest(net, ["conv", "a"], kind, wanted)
        before = {name: mask_of(net, name, kind) for name in expected}
        surgeon.update_masks(iteration)
        for name, masks in expected.items():
            found = mask_of(net, name, kind)
            np.testing.assert_array_equal(found, masks if due else before[name])


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_each_layer_reaches_its_own_sparsity(kind: str) -> None:
    net, surgeon = surgeon_of(kind, "layer { name: 'a' sparsity: 0.97 }")
    for iteration in range(61):
        disturb(net, iteration)
        surgeon.update_masks(iteration)
    assert mask_of(net, "conv", kind).all()
    assert mask_of(net, "a", kind).sum() == int(0.03 * SIZES[kind]["a"] + 1e-6)


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_compression_counts_all_parameters(kind: str) -> None:
    layers = "layer { name: 'conv' sparsity: 0.5 } layer { name: 'a' }"
    net, surgeon = surgeon_of(kind, f"compression: 4 {layers}")
    for iteration in range(61):
        disturb(net, iteration)
        surgeon.update_masks(iteration)
    parameters = sum(p.tensor.numel() for p in net.learnable_params if not p.is_mask)
    kept = parameters - sum(int((p.tensor == 0).sum()) for p in net.learnable_params if p.is_mask)
    assert kept == parameters // 4
    assert mask_of(net, "conv", kind).sum() == SIZES[kind]["conv"] / 2


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_the_threshold_in_force_is_the_layers_own(kind: str) -> None:
    """Whatever lies outside the band between pruning and splicing agrees with the rule."""
    net, surgeon = surgeon_of(kind, "sparsity: 0.7 steepness: 1")
    for iteration in range(61):
        disturb(net, iteration // 20)
        surgeon.update_masks(iteration)
    for count in surgeon.display():
        values = distances(net, count.layer, kind)
        if kind == "official":
            entry = next(e for e in surgeon.moments() if e.layer == count.layer)
            threshold = entry.mu + count.threshold * entry.sigma
        else:
            weight = net.params[count.layer][0].detach().double()
            threshold = count.threshold * float(weight.std(correction=0))
        mask = mask_of(net, count.layer, kind)
        assert mask[values > 1.1001 * threshold].all()
        assert not mask[values < 0.8999 * threshold].any()
        assert 0 < mask.sum() == count.kept < mask.size


def test_what_is_pruned_already_is_where_the_schedule_starts() -> None:
    net, surgeon = surgeon_of("official", "sparsity: 0.9 steepness: 1")
    for name in ("conv", "a"):
        for mask in net.params[name][2:]:
            mask.zero_().view(-1)[::2] = 1
    start = sum(mask_of(net, name, "official").sum() for name in ("conv", "a"))
    disturb(net, 1)
    surgeon.update_masks(0)
    assert sum(mask_of(net, name, "official").sum() for name in ("conv", "a")) == start
    surgeon.update_masks(40)
    kept = sum(mask_of(net, name, "official").sum() for name in ("conv", "a"))
    assert kept == round(40 + (start - 40) / 3)


def test_equal_parameters_are_never_more_than_wanted() -> None:
    net, surgeon = surgeon_of("official", "sparsity: 0.5")
    for param in net.learnable_params:
        if not param.is_mask:
            param.tensor.data.fill_(0)
    surgeon.update_masks(60)
    assert sum(mask_of(net, name, "official").sum() for name in ("conv", "a")) <= 203


@pytest.mark.parametrize(
    ("kind", "stage", "message"),
    [
        (
            "official",
            "compression: 1000",
            "surgery_stage[0].compression: 1000 times smaller is out of reach: of 406 parameters, 0"
            " stay in any case; at most 203 times",
        ),
        (
            "deviation",
            "compression: 20",
            "surgery_stage[0].compression: 20 times smaller is out of reach: of 448 parameters, 52 "
            "stay in any case; at most 8.296 times",
        ),
        (
            "official",
            "layer { name: 'b' }",
            "surgery_stage[0].layer: no masked layer is named 'b'; there are: conv, a",
        ),
        (
            "deviation",
            "layer { name: 'free' }",
            "surgery_stage[0].layer: no masked layer is named 'free'; there are: conv, a",
        ),
        (
            "official",
            "layer { name: 'a' threshold: 1 }",
            "surgery_stage[0].layer: 'a' is of type CInnerProduct, which has a c_rate and no "
            "threshold",
        ),
        (
            "deviation",
            "layer { name: 'conv' c_rate: 1 }",
            "surgery_stage[0].layer: 'conv' is of type Convolution, which has a threshold and no "
            "c_rate",
        ),
    ],
)
def test_stages_that_do_not_fit_the_net(kind: str, stage: str, message: str) -> None:
    with pytest.raises(CaffeError) as error:
        surgeon_of(kind, stage)
    assert str(error.value) == message


# In training --------------------------------------------------------------------------------------

STAGES = """
display: 1 max_iter: 18
surgery_stage { iterations: 5 layer { name: 'ip1' SETTING } solver { base_lr: 0.05 } }
surgery_stage { iterations: 9 sparsity: 0.8 interval: 2 end_iter: 7 solver {
  lr_policy: 'multistep' gamma: 0.5 stepvalue: 2 stepvalue: 4 } }
surgery_stage { iterations: 4 surgery: false }
"""


def stages_solver(folder: Path, kind: str) -> Solver:
    text = small_net(kind=kind)
    if kind == "CInnerProduct":
        settings = "cinner_product_param { power: 0 }"
        text = text.replace("inner_product_param", f"{settings} inner_product_param")
    setting = "c_rate: 0.4" if kind == "CInnerProduct" else "threshold: 0.9"
    return make_solver(folder, STAGES.replace("SETTING", setting), text)


@pytest.mark.parametrize("kind", ["InnerProduct", "CInnerProduct"])
@pytest.mark.parametrize("stop", [3, 5, 9, 12, 14, 16])
def test_a_run_resumed_in_any_stage_is_the_same(tmp_path: Path, kind: str, stop: int) -> None:
    make = partial(stages_solver, kind=kind)
    whole, second = whole_and_resumed(make, tmp_path, stop, 18)
    assert whole.surgeon is not None
    assert second.surgeon is not None
    assert [c.threshold for c in whole.surgeon.display()] == [
        c.threshold for c in second.surgeon.display()
    ]


@pytest.mark.parametrize("kind", ["InnerProduct", "CInnerProduct"])
def test_stages_prune_what_they_name(tmp_path: Path, kind: str) -> None:
    solver = stages_solver(tmp_path, kind)
    assert solver.surgeon is not None
    counts = []
    for steps in (5, 9, 4):
        solver.step(steps)
        counts.append({count.layer: count.pruned for count in solver.surgeon.display()})
    solver.close()
    assert counts[0]["ip1"] > 0 == counts[0]["ip2"]
    masked = 12 * 49 + 12 * 10 + (22 if kind == "CInnerProduct" else 0)
    assert sum(counts[1].values()) == masked - int(0.2 * masked)
    assert counts[2] == counts[1]


def test_stages_without_surgery_keep_their_rates(tmp_path: Path) -> None:
    text = STAGES.replace("SETTING", "")
    solver = make_solver(tmp_path, text, surgery=False)
    rates = []
    for _ in range(18):
        solver.step(1)
        rates.append(float(solver.rule.rate))
    solver.close()
    assert rates == pytest.approx([0.05] * 5 + [0.1] * 2 + [0.05] * 2 + [0.025] * 5 + [0.1] * 4)


def test_a_state_without_counts_starts_from_what_is_kept(tmp_path: Path) -> None:
    net, surgeon = surgeon_of("official", "sparsity: 0.9 steepness: 1")
    surgeon.restore([SurgeryMoments(layer=name, mu=1, sigma=1) for name in ("conv", "a")])
    disturb(net, 1)
    surgeon.update_masks(40)
    kept = sum(mask_of(net, name, "official").sum() for name in ("conv", "a"))
    assert kept == round(40 + (406 - 40) / 3)


def test_ranked_by_the_loss() -> None:
    """What w^2 F, with hysteresis, says is kept, over all layers alike, and one of each."""
    net, surgeon = surgeon_of("official", "sparsity: 0.9 ranking: LOSS")
    assert surgeon.needs_squares
    generator = torch.Generator().manual_seed(3)
    learning = [param.tensor for param in net.learnable_params if not param.is_mask]
    squares = {
        t.data_ptr(): torch.rand(t.shape, generator=generator) * (1e-6 if t.dim() == 4 else 1)
        for t in learning
    }
    surgeon.squares = squares
    for iteration in range(0, 61, 20):
        disturb(net, iteration)
        found = []
        for name in ("conv", "a"):
            mask = mask_of(net, name, "official")
            blobs = net.params[name][:2]
            loss = np.concatenate(
                [
                    (b.detach().double() ** 2 * squares[b.data_ptr()].double()).numpy().ravel()
                    for b in blobs
                ]
            ) / np.where(mask == 1, 0.81, 1.21)
            loss[loss.argmax()] = np.inf
            found += [(value, name, place) for place, value in enumerate(loss)]
        total = sum(SIZES["official"].values())
        last = total // 10
        wanted = round(last + (total - last) * (1 - iteration / 60) ** 3)
        expected = {name: np.zeros(SIZES["official"][name]) for name in ("conv", "a")}
        for _, name, place in sorted(found, reverse=True)[:wanted]:
            expected[name][place] = 1
        surgeon.update_masks(iteration)
        for name, masks in expected.items():
            np.testing.assert_array_equal(mask_of(net, name, "official"), masks)
    assert mask_of(net, "conv", "official").sum() == 1
    assert surgeon.moments()[1].threshold > 0


def test_squares_of_gradients(tmp_path: Path) -> None:
    """A running mean of what backward leaves, in front of clipping and decay."""
    settings = "max_iter: 3 momentum: 0 lr_policy: 'fixed' base_lr: 1 {} surgery_stage {{ {} }}"
    stage = "sparsity: 0.5 end_iter: 2 start_iter: 2"
    clipped = "clip_gradients: 1e-3 weight_decay: 0.1"
    plain = make_solver(tmp_path, settings.format("weight_decay: 0", stage))
    ranked = make_solver(tmp_path, settings.format(clipped, f"{stage} ranking: LOSS"))
    assert ranked.rule.num_histories == 2
    before = [p.tensor.detach().clone() for p in plain.rule.params]
    plain.step(1)
    ranked.step(1)
    for param, other, old in zip(plain.rule.params, ranked.rule.params, before, strict=True):
        gradient = (old - param.tensor.detach()).double() / param.lr_mult
        squares = ranked.rule.history(other, 1)
        assert squares is not None
        torch.testing.assert_close(squares.double(), 0.002 * gradient**2, rtol=1e-3, atol=1e-10)
    plain.close()
    ranked.close()


def test_a_resumed_run_ranks_the_same(tmp_path: Path) -> None:
    settings = "max_iter: 12 surgery_stage { sparsity: 0.8 end_iter: 10 interval: 2 ranking: LOSS }"
    whole_and_resumed(partial(make_solver, settings=settings), tmp_path, 7, 12)


def test_a_net_that_is_pruned_already_keeps_its_masks_until_there_are_gradients(
    tmp_path: Path,
) -> None:
    settings = "max_iter: 12 surgery_stage { sparsity: 0.9 end_iter: 10 interval: 2 ranking: LOSS }"
    solver = make_solver(tmp_path, settings)
    mask = solver.net.params["ip1"][2]
    mask.view(-1)[::3] = 0
    before = mask.clone()
    solver.step(1)
    assert torch.equal(mask, before)
    solver.step(2)
    assert 0 < mask.sum() < before.sum()
    solver.close()


def test_ranking_refused(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match="ranking: needs something to rank for"):
        make_solver(tmp_path, "surgery_stage { ranking: LOSS }")
    with pytest.raises(CaffeError, match="ranking: LOSS is for parameters alone"):
        make_solver(tmp_path, "surgery_stage { sparsity: 0.5 ranking: LOSS pattern: '1x4' }")
    with pytest.raises(CaffeError, match="end_iter: must be above 0 with ranking: LOSS"):
        make_solver(tmp_path, "surgery_stage { sparsity: 0.5 ranking: LOSS end_iter: 0 }")
    net = small_net().replace("lr_mult: 1", "lr_mult: 0", 1)
    for kind in ("SGD", "Adam"):
        settings = f"type: '{kind}' surgery_stage {{ sparsity: 0.5 ranking: LOSS }}"
        with pytest.raises(CaffeError, match=r"'ip1'.*does not learn"):
            make_solver(tmp_path, settings, net=net).step(1)
