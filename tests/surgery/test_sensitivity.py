"""Scores under pruning, against nets that are pruned by hand and run from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns import load_net
from caffe_dns.errors import CaffeError
from caffe_dns.layers.masked import DeviationMasks
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.proto.upgrade import read_net
from caffe_dns.reports.sensitivity import to_csv, to_definition, to_text_table
from caffe_dns.surgery.prunable_layers import PrunableLayer, find_prunable_layers
from caffe_dns.surgery.sensitivity import (
    SHARES,
    Bench,
    Curve,
    Objective,
    Point,
    Proposal,
    Study,
    find_objective,
    measure,
    propose,
)

pytestmark = pytest.mark.usefixtures("in_golden_folder")

BATCHES = 3
HOLMES = Path("runs/surgery_holmes")


def load(folder: Path = HOLMES, definition: Path | None = None) -> Net:
    # Trained for forty iterations, without masks: right more often than not.
    weights = "runs/sgd_inv/snap_iter_40.caffemodel"
    if folder != HOLMES:
        weights = str(folder / "snap_iter_40.caffemodel")
    return load_net(definition or folder / "train_val.prototxt", "TEST", weights)


def bench_of(net: Net, batches: int = BATCHES) -> tuple[Bench, list[PrunableLayer]]:
    return Bench(net, find_objective(net), batches), find_prunable_layers(net, [])


def edited(tmp_path: Path, edit: Callable[[str], str]) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(edit((HOLMES / "train_val.prototxt").read_text()))
    return path


def by_hand(blob: str, thresholds: dict[str, float]) -> float:
    """The mean of a blob over whole passes of a net of its own, pruned in float64."""
    net = load()
    for layer, threshold in thresholds.items():
        weight = net.params[layer][0].detach()
        values = weight.double().numpy()
        weight[torch.from_numpy(abs(values - values.mean()) < threshold * values.std())] = 0
    with torch.no_grad():
        score = float(np.mean([float(net()[blob]) for _ in range(BATCHES)]))
    net.close()
    return score


def test_every_score_is_that_of_a_net_pruned_by_hand() -> None:
    net = load()
    bench, prunable_layers = bench_of(net)
    study = measure(bench, prunable_layers)
    assert study.dense == pytest.approx(by_hand("accuracy", {}), abs=1e-7)
    assert [curve.layer for curve in study.curves] == ["conv1", "conv2", "ip1", "ip2"]
    for curve in study.curves:
        assert [point.share for point in curve.points] == list(SHARES)
        for point in curve.points[4::5]:
            wanted = by_hand("accuracy", {curve.layer: point.setting})
            assert point.score == pytest.approx(wanted, abs=1e-7)
    plan = {
        prunable_layer: curve.points[5].setting
        for prunable_layer, curve in zip(prunable_layers, study.curves, strict=True)
    }
    wanted = by_hand(
        "accuracy", {prunable_layer.name: setting for prunable_layer, setting in plan.items()}
    )
    assert bench.score_together(plan) == pytest.approx(wanted, abs=1e-7)
    assert bench.score_together({}) == pytest.approx(study.dense, abs=1e-7)
    net.close()


def test_nothing_is_computed_or_read_twice() -> None:
    net = load()
    bench, prunable_layers = bench_of(net)
    calls = dict.fromkeys(("mnist", "conv1", "pool1", "conv2", "ip2", "loss"), 0)
    for step in net.steps:
        if step.layer.name in calls:
            step.layer.register_forward_hook(
                lambda layer, *_: calls.update({layer.name: calls[layer.name] + 1})
            )
    bench.score_alone(
        prunable_layers, [[0.1, 0.2], [0.3], [0.4, 0.5, 0.6], [0.7]], lambda done: None
    )
    net.close()
    assert calls == {
        "mnist": BATCHES,
        "conv1": 3 * BATCHES,  # its two settings, and once for all that follows
        "pool1": 3 * BATCHES,
        "conv2": 4 * BATCHES,  # those, its own setting, and once for what follows
        "ip2": 8 * BATCHES,  # all settings, and nothing pruned
        "loss": 0,
    }


def test_proposal_holds_its_limit() -> None:
    net = load()
    bench, prunable_layers = bench_of(net)
    study = measure(bench, prunable_layers)
    kept = []
    for limit in (0.02, 0.3):
        proposal = propose(bench, prunable_layers, study, limit)
        thresholds = {name: point.setting for name, point in proposal.points.items() if point}
        assert proposal.score == pytest.approx(by_hand("accuracy", thresholds), abs=1e-7)
        assert study.dense - proposal.score <= limit + 1e-6
        kept.append(sum(point.pruned for point in proposal.points.values() if point))
    assert 0 < kept[0] < kept[1]
    net.close()


def test_layers_without_a_gain_are_spared() -> None:
    """Whatever is pruned costs more than allowed, also of the layer that stands most."""
    net = load()
    bench, prunable_layers = bench_of(net)
    points = [Point(0.5, 3.0, 50, 0.9, 0.1)]
    study = Study(
        bench.objective, BATCHES, 1.0, [Curve(s.name, "", 100, points) for s in prunable_layers]
    )
    proposal = propose(bench, prunable_layers, study, 0.01)
    assert proposal.points == {prunable_layer.name: None for prunable_layer in prunable_layers}
    assert proposal.score == 1.0
    net.close()


# What is scored -----------------------------------------------------------------------------------


def test_without_accuracy_the_loss_counts(tmp_path: Path) -> None:
    def edit(text: str) -> str:
        return "".join(line for line in text.splitlines(True) if "Accuracy" not in line)

    net = load(definition=edited(tmp_path, edit))
    bench, prunable_layers = bench_of(net)
    assert bench.objective == Objective("loss", True, {"loss": 1.0})
    _, [[score]] = bench.score_alone(prunable_layers[3:], [[1.0]], lambda done: None)
    assert score == pytest.approx(by_hand("loss", {"ip2": 1.0}), rel=1e-6)
    assert bench.objective.fall(2.2, 2.0) == pytest.approx(0.1)
    net.close()


def test_the_accuracy_of_the_best_answer_counts(tmp_path: Path) -> None:
    def edit(text: str) -> str:
        more = text.replace("layer {", "\nlayer {").splitlines(True)
        accuracy = next(line for line in more if "Accuracy" in line)
        second = accuracy.replace('top: "accuracy"', 'top: "top5" accuracy_param { top_k: 5 }')
        second = second.replace('name: "accuracy"', 'name: "top5"')
        return "".join(more) + second

    net = load(definition=edited(tmp_path, edit))
    assert find_objective(net) == Objective("accuracy", False, {"accuracy": 1.0})
    net.close()


def test_nothing_to_score_by(tmp_path: Path) -> None:
    def edit(text: str) -> str:
        return "".join(
            line
            for line in text.splitlines(True)
            if "Accuracy" not in line and "SoftmaxWithLoss" not in line
        )

    net = load(definition=edited(tmp_path, edit))
    with pytest.raises(CaffeError, match="neither an Accuracy layer nor a loss"):
        find_objective(net)
    net.close()


# Reports ------------------------------------------------------------------------------------------


def example() -> tuple[Study, Proposal]:
    few, many = Point(0.5, 0.75, 50, 0.1, 0.875), Point(0.9, 1.5, 90, 0.4, 0.5)
    curves = [
        Curve("conv1", "threshold", 100, [few, many]),
        Curve("ip2", "threshold", 300, [Point(0.9, 2.0, 270, 0.4, 0.25)]),
    ]
    study = Study(Objective("accuracy", False, {"accuracy": 1.0}), 7, 0.9, curves)
    return study, Proposal(0.05, {"conv1": few, "ip2": None}, 0.875)


def test_table() -> None:
    text = to_text_table(*example())
    lines = text.splitlines()
    assert lines[0].startswith("accuracy = 0.9000 over 7 batches")
    columns = lines[2].replace(" %", "%").split()
    assert columns == ["layer", "weights", *(f"{100 * share:g}%" for share in SHARES)]
    assert lines[3].split() == ["conv1", "100", "0.8750", "0.5000"]
    assert len(lines[3][: lines[2].index("50 %") + 4].split()) == 3
    assert "all together accuracy = 0.8750, 1.1 times fewer weights" in lines[6]
    assert lines[8].split() == ["conv1", "threshold", "0.75", "50.0", "%"]
    assert lines[9].split() == ["ip2", "not", "pruned"]


def test_csv() -> None:
    assert to_csv(example()[0]).decode().splitlines() == [
        "layer,setting,value,sparsity,pruned,weights,accuracy",
        "conv1,threshold,,0,0,100,0.9",
        "conv1,threshold,0.75,0.5,50,100,0.875",
        "conv1,threshold,1.5,0.9,90,100,0.5",
        "ip2,threshold,,0,0,300,0.9",
        "ip2,threshold,2,0.9,270,300,0.25",
    ]


def test_definition_of_the_standard_kind(tmp_path: Path) -> None:
    definition = read_net(str(HOLMES / "train_val.prototxt")).message
    path = tmp_path / "proposed.prototxt"
    path.write_text(to_definition(definition, *example()))
    net = load(definition=path)
    conv1 = net.layer("conv1")
    assert isinstance(conv1, DeviationMasks) and conv1.threshold == 0.75
    assert [len(net.params[layer]) for layer in ("conv1", "conv2", "ip2")] == [3, 3, 2]
    net.close()
    # Nothing else has changed.
    proposed = parse_text(path.read_text(), NetParameter).message
    for layer, before in zip(proposed.layer, definition.layer, strict=True):
        if layer.name not in ("conv1", "ip2"):
            assert layer == before
        elif layer.name == "ip2":
            assert not layer.inner_product_param.sparsity_term
            assert len(layer.param) == 2


def test_definition_of_the_official_kind() -> None:
    definition = read_net("runs/surgery_guo/train_val.prototxt").message
    proposed = parse_text(to_definition(definition, *example()), NetParameter).message
    by_name = {layer.name: layer for layer in proposed.layer}
    assert by_name["conv1"].cconvolution_param.c_rate == 0.75
    assert by_name["conv1"].cconvolution_param.iter_stop == 1000
    assert by_name["ip2"].cinner_product_param.iter_stop == 0


def test_definition_with_shared_weights() -> None:
    definition = read_net("runs/siamese_shared/train_val.prototxt").message
    point = Point(0.5, 0.75, 50, 0.1, 0.875)
    study = Study(
        example()[0].objective,
        1,
        0.9,
        [
            Curve("ipa0", "threshold", 100, [point], ["ipa1"]),
            Curve("ipb0", "threshold", 100, [point], ["ipb1"]),
        ],
    )
    text = to_definition(definition, study, Proposal(0.1, {"ipa0": point, "ipb0": None}, 0.9))
    layers = {layer.name: layer for layer in parse_text(text, NetParameter).message.layer}
    assert [layers[name].inner_product_param.threshold for name in ("ipa0", "ipa1")] == [0.75] * 2
    for name in ("ipb0", "ipb1"):
        assert not layers[name].inner_product_param.sparsity_term
