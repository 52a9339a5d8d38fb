"""When masks are renewed in training, what is counted, and what a solver state keeps."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.layers.base import Context
from caffe_dns.layers.masked import MagnitudeMasks
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter, SurgeryMoments
from caffe_dns.proto.text import parse_text
from caffe_dns.surgery.stages import plan
from caffe_dns.surgery.surgeon import Surgeon
from tests.nets import input_layer, layer, make_net, recorded_log
from tests.solver.harness import make_solver, small_net
from tests.test_mask_rules import deviation_mask, hysteresis_mask, magnitude_moments

DATA = input_layer(data=(2, 3, 6, 5))
FILLED = "weight_filler { type: 'gaussian' std: 0.5 } bias_filler { type: 'gaussian' }"


def conv(name: str, bottom: str, settings: str = "", kind: str = "Convolution") -> str:
    inner = f"convolution_param {{ num_output: 4 kernel_size: 3 {FILLED} {settings} }}"
    return layer(name, kind, bottom, name, inner)


def ip(
    name: str, bottom: str, settings: str = "", kind: str = "InnerProduct", more: str = ""
) -> str:
    inner = f"inner_product_param {{ num_output: 6 {FILLED} {settings} }} {more}"
    return layer(name, kind, bottom, name, inner)


HOLMES = DATA + conv("conv", "data") + ip("a", "conv", "threshold: 0.5")
HOLMES += ip("free", "a", "sparsity_term: false")
GUO = DATA + conv("conv", "data", kind="CConvolution")
GUO += ip("a", "conv", kind="CInnerProduct", more="cinner_product_param { c_rate: 0.5 }")


def make_surgeon(
    text: str, settings: str = "", seed: int = 1, surgery: bool = True
) -> tuple[Net, Surgeon]:
    net = make_net(text, context=Context(surgery=surgery))
    param: SolverParameter = parse_text(settings, SolverParameter).message
    return net, Surgeon.of_net(net, plan(param), seed)


def masks(net: Net) -> list[torch.Tensor]:
    return [p.tensor.clone() for p in net.learnable_params if p.is_mask]


def operated(net: Net, surgeon: Surgeon, iterations: range) -> list[int]:
    """The iterations at which masks were renewed; weights change in between."""
    found = []
    for iteration in iterations:
        for param in net.learnable_params:
            if not param.is_mask:
                generator = torch.Generator().manual_seed(iteration)
                param.tensor.data.normal_(generator=generator)
        before = masks(net)
        surgeon.update_masks(iteration)
        if not all(torch.equal(a, b) for a, b in zip(before, masks(net), strict=True)):
            found.append(iteration)
    return found


# Who is operated ----------------------------------------------------------------------------------


def test_patients_are_the_layers_with_masks() -> None:
    _, surgeon = make_surgeon(HOLMES)
    assert [masked_layer.layer.name for masked_layer in surgeon.masked_layers] == ["conv", "a"]
    _, surgeon = make_surgeon(HOLMES, surgery=False)
    assert surgeon.masked_layers == []
    _, surgeon = make_surgeon(GUO, surgery=False)
    assert [masked_layer.layer.name for masked_layer in surgeon.masked_layers] == ["conv", "a"]


def test_a_shared_mask_has_one_patient() -> None:
    twin = HOLMES + ip("b", "conv", "threshold: 0.5").replace(
        "name: 'b'", "name: 'b' param { name: 'w' }"
    )
    twin = twin.replace("name: 'a' ", "name: 'a' param { name: 'w' } ", 1)
    _, surgeon = make_surgeon(twin)
    assert [masked_layer.layer.name for masked_layer in surgeon.masked_layers] == ["conv", "a"]


def test_announcing() -> None:
    with recorded_log() as messages:
        make_surgeon(HOLMES)[1].announce()
        make_surgeon(GUO)[1].announce()
        make_surgeon(HOLMES, surgery=False)[1].announce()
    assert messages == [
        "Surgery on conv (threshold 0.6), a (threshold 0.5). To train without it: --no-surgery",
        "Surgery on conv (c_rate 3, until iteration 10000), a (c_rate 0.5, until iteration 8000). "
        "To train without it: --no-surgery",
    ]


# When ---------------------------------------------------------------------------------------------


def test_power_zero_operates_at_every_iteration() -> None:
    net, surgeon = make_surgeon(HOLMES, "surgery_iter_power: 0")
    assert operated(net, surgeon, range(20)) == list(range(20))


def test_surgery_grows_rare() -> None:
    net, surgeon = make_surgeon(HOLMES, "surgery_iter_gamma: 0.01 surgery_iter_power: 1")
    times = operated(net, surgeon, range(1200))
    # 120 ln(12) iterations are expected, fewer in each later third.
    assert len(times) == pytest.approx(100 * np.log(13), abs=50)
    thirds = [sum(low <= t < low + 400 for t in times) for low in (0, 400, 800)]
    assert thirds[0] > thirds[1] > thirds[2] > 0


def test_layers_of_one_net_are_operated_together() -> None:
    net, surgeon = make_surgeon(HOLMES, "surgery_iter_gamma: 1 surgery_iter_power: 0.5")
    for iteration in range(30):
        for param in net.learnable_params:
            if not param.is_mask:
                param.tensor.data.normal_()
        before = masks(net)
        surgeon.update_masks(iteration)
        changed = {not torch.equal(a, b) for a, b in zip(before, masks(net), strict=True)}
        assert len(changed) == 1


def test_surgery_stops() -> None:
    net, surgeon = make_surgeon(HOLMES, "surgery_iter_power: 0 surgery_stop_iter: 7")
    assert operated(net, surgeon, range(20)) == list(range(7))
    net, surgeon = make_surgeon(HOLMES, "surgery_iter_power: 0 surgery_stop_iter: 0")
    assert operated(net, surgeon, range(5)) == []


def test_draws_are_those_of_the_seed() -> None:
    settings = "surgery_iter_gamma: 0.5"
    runs = [operated(*make_surgeon(HOLMES, settings, seed), range(60)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]
    assert 3 < len(runs[0]) < 30
    # Nothing is stored: an operation at iteration 40 needs none before it.
    later = operated(*make_surgeon(HOLMES, settings, 1), range(40, 60))
    assert later == [t for t in runs[0] if t >= 40]


@pytest.mark.parametrize("kind", ["C", "I"])
def test_layers_of_the_official_kind_stop_by_themselves(kind: str) -> None:
    stop = "power: 0 iter_stop: 4"
    conv_stop = stop if kind == "C" else "power: 0"
    ip_stop = stop if kind == "I" else "power: 0"
    text = DATA + conv("conv", "data", kind="CConvolution").replace(
        "convolution_param", f"cconvolution_param {{ {conv_stop} c_rate: 0 }} convolution_param"
    )
    text += ip(
        "a", "conv", kind="CInnerProduct", more=f"cinner_product_param {{ {ip_stop} c_rate: 0 }}"
    )
    net, surgeon = make_surgeon(text)
    ended = {"C": net.params["conv"][2], "I": net.params["a"][2]}[kind]
    going = {"C": net.params["a"][2], "I": net.params["conv"][2]}[kind]
    operated(net, surgeon, range(4))
    before = ended.clone(), going.clone()
    operated(net, surgeon, range(4, 8))
    assert torch.equal(ended, before[0])
    assert not torch.equal(going, before[1])


def test_layers_of_the_official_kind_draw_for_themselves() -> None:
    settings = "gamma: 1 power: 0.5 c_rate: 0"
    text = DATA + ip(
        "a", "data", kind="CInnerProduct", more=f"cinner_product_param {{ {settings} }}"
    )
    text += ip("b", "a", kind="CInnerProduct", more=f"cinner_product_param {{ {settings} }}")
    net, surgeon = make_surgeon(text)
    differ = 0
    for iteration in range(40):
        for param in net.learnable_params:
            if not param.is_mask:
                param.tensor.data.normal_()
        before = [net.params[name][2].clone() for name in "ab"]
        surgeon.update_masks(iteration)
        changed = [
            not torch.equal(net.params[name][2], old)
            for name, old in zip("ab", before, strict=True)
        ]
        differ += changed[0] != changed[1]
    assert differ > 3


def test_several_batches_give_the_official_kind_several_draws() -> None:
    settings = "gamma: 1 power: 1 c_rate: 0"
    text = DATA + ip(
        "a", "data", kind="CInnerProduct", more=f"cinner_product_param {{ {settings} }}"
    )
    counts = [
        len(operated(*make_surgeon(text, f"iter_size: {size}"), range(200))) for size in (1, 8)
    ]
    assert counts[1] > 2 * counts[0]


# What is done -------------------------------------------------------------------------------------


def test_masks_by_deviation() -> None:
    net, surgeon = make_surgeon(HOLMES)
    surgeon.update_masks(0)
    for name, threshold in (("conv", np.float32(0.6)), ("a", 0.5)):
        weight, _, mask = (blob.detach().numpy() for blob in net.params[name])
        assert np.array_equal(mask, deviation_mask(weight.astype(np.float64), float(threshold)))


def test_masks_by_magnitude_with_moments_of_iteration_0() -> None:
    net, surgeon = make_surgeon(GUO.replace("c_rate: 0.5", "c_rate: 0.5 power: 0"))
    first = [blob.detach().double().numpy().copy() for blob in net.params["a"][:2]]
    surgeon.update_masks(0)
    mu, sigma = magnitude_moments(first)
    found = net.layer("a")
    assert isinstance(found, MagnitudeMasks)
    assert found.moments.tolist() == pytest.approx([mu, sigma], rel=1e-5)
    wanted = hysteresis_mask(first[0], np.ones_like(first[0]), mu, sigma, 0.5)
    assert np.array_equal(found.blobs[2], wanted)
    found.blobs[0].data.mul_(1.7)
    surgeon.update_masks(1)
    wanted = hysteresis_mask(first[0] * 1.7, wanted, mu, sigma, 0.5)
    assert np.array_equal(found.blobs[2], wanted)
    assert found.moments.tolist() == pytest.approx([mu, sigma], rel=1e-5)


def test_counts_and_lines() -> None:
    net, surgeon = make_surgeon(HOLMES, "surgery_iter_power: 0")
    surgeon.update_masks(0)
    before = masks(net)
    for name in ("conv", "a"):
        net.params[name][0].data.normal_(generator=torch.Generator().manual_seed(3))
    surgeon.update_masks(1)
    after = masks(net)
    with recorded_log() as messages:
        counts = surgeon.display()
    back = [int(((a == 1) & (b == 0)).sum()) for a, b in zip(after, before, strict=True)]
    kept = [int(mask.sum()) for mask in after]
    sizes = [mask.numel() for mask in after]
    assert [(c.layer, c.kept, c.pruned, c.spliced_back) for c in counts] == [
        ("conv", kept[0], sizes[0] - kept[0], back[0]),
        ("a", kept[1], sizes[1] - kept[1], back[1]),
    ]
    assert min(back) > 0
    sparsity = [1 - k / n for k, n in zip(kept, sizes, strict=True)]
    assert messages == [
        f"ConV Sparsity: {sparsity[0]:.6g}",
        f"IP Sparsity: {sparsity[1]:.6g}",
        *(
            f"Surgery {name}: kept {k}, pruned {n - k}, sparsity {s:.6g}, spliced back {b}"
            for name, k, n, s, b in zip(("conv", "a"), kept, sizes, sparsity, back, strict=True)
        ),
    ]
    assert [count.spliced_back for count in surgeon.display()] == [0, 0]


def test_biases_count_where_they_have_masks() -> None:
    net, surgeon = make_surgeon(GUO)
    surgeon.update_masks(0)
    count = surgeon.display()[1]
    weight, bias = net.params["a"][2:]
    assert count.kept == int(weight.sum() + bias.sum())
    assert count.kept + count.pruned == weight.numel() + bias.numel()


# State --------------------------------------------------------------------------------------------


def test_moments_are_kept_and_taken_over() -> None:
    net, surgeon = make_surgeon(GUO)
    assert surgeon.moments() == []
    surgeon.update_masks(0)
    stored = surgeon.moments()
    assert [entry.layer for entry in stored] == ["conv", "a"]
    other_net, other = make_surgeon(GUO, seed=2)
    with recorded_log() as messages:
        other.restore(stored)
        assert other.moments() == stored
        other.update_masks(20)
    assert messages == []
    for name in ("conv", "a"):
        mine, theirs = other_net.layer(name), net.layer(name)
        assert isinstance(mine, MagnitudeMasks)
        assert isinstance(theirs, MagnitudeMasks)
        assert torch.equal(mine.moments, theirs.moments)


def test_missing_moments_are_measured() -> None:
    net, surgeon = make_surgeon(GUO)
    with recorded_log() as messages:
        surgeon.restore([SurgeryMoments(layer="conv", mu=0.25, sigma=0.5)])
        surgeon.update_masks(20)
    assert messages == [
        "The solver state has no surgery moments for layer a; measured them from the weights as "
        "they are now"
    ]
    conv_layer, ip_layer = net.layer("conv"), net.layer("a")
    assert isinstance(conv_layer, MagnitudeMasks)
    assert isinstance(ip_layer, MagnitudeMasks)
    assert conv_layer.moments.tolist() == [0.25, 0.5]
    assert (ip_layer.moments > 0).all()


# In training --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["InnerProduct", "CInnerProduct"])
@pytest.mark.parametrize("size", [1, 3])
def test_pruned_weights_go_on_learning(tmp_path: Path, kind: str, size: int) -> None:
    """One update, against the gradient of the masked net, which reaches all weights."""
    text = small_net(kind=kind)
    if kind == "CInnerProduct":
        settings = "cinner_product_param { c_rate: 0.3 power: 0 }"
        text = text.replace("inner_product_param", f"{settings} inner_product_param")
    solver = make_solver(tmp_path, f"iter_size: {size} surgery_iter_power: 0", text)
    parameters = {
        f"{name}/{index}": blobs[index].detach().clone()
        for name, blobs in solver.net.params.items()
        for index in range(2)
    }
    twin = make_solver(tmp_path, f"iter_size: {size}", text).net
    solver.step(1)
    solver.close()
    for name, blobs in twin.params.items():
        for index, blob in enumerate(blobs[2:], start=2):
            blob.copy_(solver.net.params[name][index])
        assert 0 < float(blobs[2].mean()) < 1
    for _ in range(size):
        twin.loss(twin()).backward()
    twin.close()
    for param in twin.learnable_params:
        if not param.is_mask:
            before = parameters[f"{param.layer.name}/{param.index}"]
            assert param.tensor.grad is not None
            expected = before - 0.1 * param.lr_mult * param.tensor.grad / size
            after = solver.net.params[param.layer.name][param.index].detach()
            torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-6)
    moved = solver.net.params["ip2"][0].detach() != parameters["ip2/0"]
    pruned = solver.net.params["ip2"][2] == 0
    assert (moved & pruned).sum() > 0.5 * pruned.sum()


def test_lines_in_a_run(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "display: 1 max_iter: 2 surgery_iter_power: 0")
    with recorded_log() as messages:
        solver.step(1)
    solver.close()
    kinds = [re.sub(r"[ :(].*", "", message.strip()) for message in messages]
    assert kinds == ["Iteration", "Train", "IP", "Surgery", "Surgery", "Iteration"]


def test_no_surgery_trains_as_plain_caffe(tmp_path: Path) -> None:
    plain = make_solver(tmp_path, surgery=False)
    never = make_solver(tmp_path, "surgery_stop_iter: 0")
    for solver in (plain, never):
        solver.step(4)
        solver.close()
    assert plain.surgeon is None
    for name, blobs in plain.net.params.items():
        assert len(blobs) == 2
        for mine, theirs in zip(blobs, never.net.params[name], strict=False):
            assert torch.equal(mine, theirs)


def test_a_mask_seen_in_another_shape_has_one_patient() -> None:
    text = DATA + ip("a", "data", "transpose: true") + ip("b", "data")
    text = text.replace("name: 'a' ", "name: 'a' param { name: 'w' } ", 1)
    text = text.replace("name: 'b' ", "name: 'b' param { name: 'w' share_mode: PERMISSIVE } ", 1)
    _, surgeon = make_surgeon(text)
    assert [masked_layer.layer.name for masked_layer in surgeon.masked_layers] == ["a"]
