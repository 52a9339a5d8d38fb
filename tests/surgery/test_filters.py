"""Surgery on whole filters, against plain loops, and that `--shrink` takes exactly what was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.export.deploy import deploy
from caffe_dns.export.model import UnmaskedModel
from caffe_dns.export.shrink import shrink
from caffe_dns.net import Net
from caffe_dns.reports.summary import summarize
from caffe_dns.surgery import Surgeon
from tests.nets import input_layer, layer, recorded_log
from tests.solver.harness import whole_and_resumed
from tests.surgery.test_surgeon import FILLED, make_surgeon
from tests.surgery.test_target import disturb
from tests.surgery.test_target_macs import solver_of

STAGE = "lr_policy: 'fixed' surgery_stage {{ iterations: 100 interval: 20 end_iter: 60 {} }}"
PREFIX = {"official": "C", "deviation": ""}


def conv(name: str, bottom: str, outputs: int, kind: str, more: str = "pad: 1") -> str:
    settings = f"num_output: {outputs} kernel_size: 3 {more} {FILLED}"
    return layer(name, f"{kind}Convolution", bottom, name, f"convolution_param {{ {settings} }}")


def net_text(kind: str) -> str:
    """Two branches that are joined, a sum, an inner product on images, and one on its outputs."""
    kind = PREFIX[kind]
    ips = [
        layer(
            name,
            f"{kind}InnerProduct",
            bottom,
            name,
            f"inner_product_param {{ num_output: {outputs} {FILLED} }}",
        )
        for name, bottom, outputs in (("flat", "sum", 12), ("last", "flat", 4))
    ]
    relu = layer("relu", "ReLU", "flat", "flat")
    return (
        input_layer(data=(2, 3, 6, 6))
        + conv("stem", "data", 8, kind)
        + layer("norm", "BatchNorm", "stem", "stem", "batch_norm_param { use_global_stats: true }")
        + layer("stem_relu", "ReLU", "stem", "stem")
        + conv("left", "stem", 6, kind)
        + conv("right", "stem", 5, kind)
        + layer("joined", "Concat", "left right", "joined")
        + layer("pool", "Pooling", "joined", "pool", "pooling_param { kernel_size: 2 stride: 2 }")
        + conv("one", "pool", 7, kind)
        + conv("other", "pool", 7, kind)
        + layer("sum", "Eltwise", "one other", "sum")
        + ips[0]
        + relu
        + ips[1]
    )


NAMES = ["stem", "left", "right", "one", "other", "flat", "last"]


#: What the sum adds: their filters go together.
TERMS = ("one", "other")


def surgeon_of(kind: str, stage: str) -> tuple[Net, Surgeon]:
    return make_surgeon(net_text(kind), STAGE.format(stage))


def filters(net: Net, name: str) -> np.ndarray:
    """Which filters have a weight that is kept."""
    mask = net.params[name][2].numpy()
    return np.array([row.any() for row in mask])


def masks_of(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The masks of weights that go with filters, written out for this net."""
    arriving = {
        "stem": np.ones(3, bool),
        "left": kept["stem"],
        "right": kept["stem"],
        "one": np.concatenate([kept["left"], kept["right"]]),
        "flat": np.repeat(kept["one"] | kept["other"], 9),
        "last": kept["flat"],
    }
    arriving["other"] = arriving["one"]
    masks = {}
    for name, outputs in kept.items():
        mask = outputs[:, None] & arriving[name]
        if name not in ("flat", "last"):
            mask = np.broadcast_to(mask[:, :, None, None], (*mask.shape, 3, 3))
        masks[name] = mask
    return masks


def strengths(net: Net, name: str, kind: str) -> np.ndarray:
    weight = net.params[name][0].detach().double().numpy()
    distance = weight - (weight.mean() if kind == "deviation" else 0)
    own = np.sqrt((distance.reshape(len(weight), -1) ** 2).mean(1))
    return own / np.where(filters(net, name), 0.9, 1.1)


def check_masks(net: Net, kind: str) -> None:
    kept = {name: filters(net, name) for name in NAMES}
    assert kept["last"].all()
    np.testing.assert_array_equal(kept["one"], kept["other"])
    for name, mask in masks_of(kept).items():
        np.testing.assert_array_equal(net.params[name][2].numpy(), mask)
        if kind == "official":
            np.testing.assert_array_equal(net.params[name][3].numpy(), kept[name])


@pytest.mark.parametrize("kind", ["official", "deviation"])
@pytest.mark.parametrize("target", ["macs: 0.3", "sparsity: 0.6", "compression: 3"])
def test_a_target(kind: str, target: str) -> None:
    net, surgeon = surgeon_of(kind, f"{target} pattern: 'filter'")
    came_back = 0
    for iteration in range(61):
        disturb(net, iteration)
        before = {name: filters(net, name) for name in NAMES}
        values = {name: strengths(net, name, kind) for name in NAMES}
        surgeon.update_masks(iteration)
        if iteration % 20:
            continue
        check_masks(net, kind)
        for name in NAMES[:-1]:
            kept = filters(net, name)
            if name not in TERMS:
                assert values[name][kept].min() > values[name][~kept].max(initial=0)
            came_back += int((kept & ~before[name]).sum())
    assert came_back
    rows = summarize(net)
    if target.startswith("macs"):
        macs = sum(row.macs for row in rows)
        assert 0.2 * macs < sum(row.macs_kept for row in rows) <= 0.3 * macs
        assert surgeon.macs_kept() == (sum(row.macs_kept for row in rows), macs)
    elif target.startswith("sparsity"):
        size = sum(masked_layer.size for masked_layer in surgeon.masked_layers)
        kept_in_all = sum(masked_layer.kept() for masked_layer in surgeon.masked_layers)
        assert 0.3 * size < kept_in_all <= 0.4 * size
    else:
        kept_in_all, size = sum(row.kept for row in rows), sum(row.parameters for row in rows)
        assert size / 4 < kept_in_all <= size / 3


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_a_threshold(kind: str) -> None:
    net, surgeon = surgeon_of(kind, "pattern: 'filter'")
    for iteration in range(40):
        disturb(net, iteration)
        values = {name: strengths(net, name, kind) for name in NAMES}
        surgeon.update_masks(iteration)
        check_masks(net, kind)
        for masked_layer in surgeon._due(iteration):
            own = values[masked_layer.name]
            above = own > float(masked_layer.limit())
            above[own.argmax()] = True
            kept = filters(net, masked_layer.name)
            if masked_layer.name in TERMS:
                assert kept[above].all()
            elif masked_layer.name != "last":
                np.testing.assert_array_equal(kept, above)


@pytest.mark.parametrize("kind", ["official", "deviation"])
def test_shrink_takes_exactly_what_was_cut(kind: str) -> None:
    """Behind paddings, a normalization and a sum, too."""
    net, surgeon = surgeon_of(kind, "macs: 0.3 pattern: 'filter'")
    disturb(net, 5)
    surgeon.update_masks(60)
    net.params["norm"][0].data.normal_()
    net.params["norm"][1].data.uniform_(0.5, 2)
    net.params["norm"][2].data.fill_(1)
    definition = deploy(net.param, shapes=[])
    shrunk = shrink(UnmaskedModel.of_net(definition, net)).model.to_net()
    kept = {name: filters(net, name) for name in NAMES}
    for name in NAMES:
        assert len(shrunk.params[name][0]) == kept[name].sum(), name
    assert sum(row.macs for row in summarize(shrunk)) == surgeon.macs_kept()[0]
    data = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(
        shrunk({shrunk.inputs[0]: data})["last"], net({"data": data})["last"], rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("kind", ["", "C"])
def test_a_resumed_run_is_the_same(tmp_path: Path, kind: str) -> None:
    stages = (
        "display: 1 max_iter: 14 surgery_stage { iterations: 14 interval: 2 end_iter: 7 "
        "macs: 0.6 pattern: 'filter' }"
    )
    _, second = whole_and_resumed(lambda folder: solver_of(folder, kind, stages), tmp_path, 5, 14)
    assert not filters(second.net, "ip1").all()
    assert filters(second.net, "ip2").all()


def test_layers_that_are_read_by_others_are_held() -> None:
    """By a layer that sees across channels, one with groups, and one that is not in the stage."""
    text = (
        input_layer(data=(2, 3, 6, 6))
        + conv("a", "data", 4, "")
        + layer("lrn", "LRN", "a", "lrn")
        + conv("b", "lrn", 4, "")
        + conv("c", "b", 4, "", "group: 2")
        + conv("d", "c", 4, "")
        + conv("e", "d", 4, "")
        + conv("f", "e", 4, "")
        + conv("g", "f", 4, "")
    )
    layers = " ".join(f"layer {{ name: '{name}' }}" for name in "abcdef")
    stage = STAGE.format(f"sparsity: 0.5 pattern: 'filter' {layers}")
    net, surgeon = make_surgeon(text, stage)
    disturb(net, 3)
    surgeon.update_masks(60)
    cut = [name for name in "abcdefg" if not filters(net, name).all()]
    assert cut == ["d", "e"]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (
            "macs: 0.001 pattern: 'filter'",
            "surgery_stage[0].macs: 0.001 of the multiply-accumulates is out of reach: 0 of them "
            "stay in any case, and a filter of each layer; at least ",
        ),
        (
            "sparsity: 0.5 layer { name: 'left' pattern: 'filter' } layer { name: 'right' }",
            "surgery_stage[0].pattern: layers that share a target are all pruned by filters, or "
            "none",
        ),
    ],
)
def test_stages_that_do_not_fit(stage: str, message: str) -> None:
    with pytest.raises(CaffeError) as error:
        surgeon_of("deviation", stage)
    assert str(error.value).startswith(message)
    if stage.startswith("macs"):
        least = str(error.value).rsplit(" ", 1)[1]
        _, surgeon = surgeon_of("deviation", f"macs: {least} pattern: 'filter'")
        surgeon.update_masks(60)
        kept, macs = surgeon.macs_kept()
        assert kept <= float(least) * macs


def test_the_log_says_so() -> None:
    _, surgeon = surgeon_of("deviation", "macs: 0.3 pattern: 'filter'")
    with recorded_log() as messages:
        surgeon.announce()
    assert "all in the pattern filter" in messages[0]
