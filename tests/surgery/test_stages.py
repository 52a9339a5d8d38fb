"""Stages of a training run: their plan, their learning rates, and what is wrong with a plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffe_dns.errors import CaffeError
from caffe_dns.lr_policy import learning_rate
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.surgery.stages import Stage, parse_target, plan, stage_at
from tests.nets import recorded_log
from tests.solver.harness import make_solver


def planned(text: str) -> list[Stage]:
    policy = "" if text.startswith("lr_policy") else "lr_policy: 'fixed'"
    return plan(parse_text(f"base_lr: 0.1 {policy} {text}", SolverParameter).message)


def test_without_stages_there_is_one() -> None:
    (stage,) = planned("max_iter: 70")
    assert (stage.number, stage.start, stage.end) == (1, 0, 70)
    settings = stage.settings_of("any")
    assert settings is not None
    assert [field.name for field, _ in settings.ListFields()] == ["name"]


def test_stages_follow_each_other() -> None:
    stages = planned(
        "surgery_stage { name: 'convolutions' iterations: 30 layer { name: 'conv1' } }"
        "surgery_stage { iterations: 20 surgery: false } surgery_stage { } max_iter: 90"
    )
    assert [(stage.start, stage.end) for stage in stages] == [(0, 30), (30, 50), (50, 90)]
    assert [stage.title for stage in stages] == ["stage 1 (convolutions)", "stage 2", "stage 3"]
    assert [stage_at(stages, iteration).number for iteration in (0, 29, 30, 49, 50, 89, 90)] == [
        *(1, 1, 2, 2, 3, 3, 3)
    ]
    assert [
        [stage.settings_of(name) is not None for stage in stages] for name in ("conv1", "a")
    ] == [
        [True, False, True],
        [False, False, True],
    ]


def test_max_iter_may_be_left_out(tmp_path: Path) -> None:
    text = "surgery_stage { iterations: 3 } surgery_stage { iterations: 4 }"
    assert planned(text)[-1].end == 7
    solver = make_solver(tmp_path, f"max_iter: 7 {text}")
    solver.solve()
    solver.close()
    assert solver.iteration == 7


def test_rates_count_from_the_beginning_of_a_stage() -> None:
    text = (
        "momentum: 0.9 surgery_stage { iterations: 30 solver { lr_policy: 'poly' power: 2 } }"
        "surgery_stage { iterations: 40 solver { base_lr: 0.3 lr_policy: 'multistep' gamma: 0.5"
        " stepvalue: 10 stepvalue: 20 } } surgery_stage { iterations: 5 }"
    )
    stages = planned(text)
    found, step = [], 0
    for iteration in range(75):
        rate, step = stage_at(stages, iteration).rate(iteration, step)
        found.append(rate)
    poly = parse_text(
        "base_lr: 0.1 lr_policy: 'poly' power: 2 max_iter: 30", SolverParameter
    ).message
    assert found[:30] == pytest.approx([learning_rate(poly, i, 0) for i in range(30)])
    assert found[30:70] == pytest.approx([0.3] * 10 + [0.15] * 10 + [0.075] * 20)
    assert found[70:] == pytest.approx([0.1] * 5)


def test_a_stage_that_names_its_steps_has_no_others() -> None:
    (stage,) = planned(
        "lr_policy: 'multistep' gamma: 0.1 stepvalue: 3 surgery_stage { iterations: 9 "
        "solver { stepvalue: 5 } }"
    )
    assert list(stage.param.stepvalue) == [5]


def test_where_the_sparsity_is_reached() -> None:
    (half,) = planned("surgery_stage { iterations: 30 sparsity: 0.5 }")
    (late,) = planned("surgery_stage { iterations: 30 sparsity: 0.5 start_iter: 20 }")
    (given,) = planned("surgery_stage { iterations: 30 sparsity: 0.5 end_iter: 29 }")
    assert [half.end_iter, late.end_iter, given.end_iter] == [15, 20, 29]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("surgery_stage { } ", "surgery_stage[0].iterations: must be at least 1, not 0"),
        (
            "surgery_stage { } surgery_stage { iterations: 4 }",
            "surgery_stage[0].iterations: must be at least 1, not 0",
        ),
        (
            "max_iter: 4 surgery_stage { iterations: 5 }",
            "max_iter: is 4, but the iterations of all surgery_stage are 5; leave it out, or make "
            "them the same",
        ),
        (
            "surgery_stage { iterations: 5 sparsity: 1 }",
            "surgery_stage[0].sparsity: must be at least 0 and below 1, but is 1",
        ),
        (
            "surgery_stage { iterations: 5 layer { name: 'a' sparsity: -0.5 } }",
            "surgery_stage[0].sparsity: must be at least 0 and below 1, but is -0.5",
        ),
        (
            "surgery_stage { iterations: 5 compression: 0.5 }",
            "surgery_stage[0].compression: must be at least 1, not 0.5",
        ),
        (
            "surgery_stage { iterations: 5 compression: 5 sparsity: 0.5 }",
            "surgery_stage[0].compression: give either this or sparsity, not both",
        ),
        (
            "surgery_stage { iterations: 5 macs: 1.5 }",
            "surgery_stage[0].macs: must be above 0 and at most 1, but is 1.5",
        ),
        (
            "surgery_stage { iterations: 5 macs: 0.5 compression: 5 }",
            "surgery_stage[0].macs: give either this or compression, not both",
        ),
        (
            "surgery_stage { iterations: 5 macs: 0.5 layer { name: 'a' sparsity: 0.5 } }",
            "surgery_stage[0].macs: 'a' has a sparsity, but all layers of a stage are pruned "
            "together by this; give that one a stage of its own",
        ),
        (
            "surgery_stage { iterations: 5 compression: 5 layer { name: 'a' threshold: 1 } }",
            "surgery_stage[0].compression: 'a' has a threshold, so what it will keep is not known; "
            "give it a sparsity",
        ),
        (
            "surgery_stage { iterations: 5 layer { name: 'a' threshold: 1 sparsity: 0.5 } }",
            "surgery_stage[0].layer: 'a' can have only one of sparsity, threshold",
        ),
        (
            "surgery_stage { iterations: 5 layer { name: 'a' } layer { name: 'a' } }",
            "surgery_stage[0].layer: 'a' is given more than once",
        ),
        (
            "surgery_stage { iterations: 5 start_iter: -1 }",
            "surgery_stage[0].start_iter: must not be negative, but is -1",
        ),
        (
            "surgery_stage { iterations: 5 start_iter: 2 end_iter: 1 }",
            "surgery_stage[0].end_iter: must lie between start_iter (2) and the stage's last "
            "iteration (4), but is 1",
        ),
        (
            "surgery_stage { iterations: 5 } surgery_stage { iterations: 5 end_iter: 5 }",
            "surgery_stage[1].end_iter: must lie between start_iter (0) and the stage's last "
            "iteration (4), but is 5",
        ),
        (
            "surgery_stage { iterations: 5 interval: 0 }",
            "surgery_stage[0].interval: must be at least 1, not 0",
        ),
        (
            "surgery_stage { iterations: 5 steepness: 0 }",
            "surgery_stage[0].steepness: must be above 0, not 0",
        ),
        (
            "surgery_stage { iterations: 5 solver { lr_policy: 'stop' } }",
            "surgery_stage[0].lr_policy: unknown learning rate policy 'stop' (did you mean "
            "'step'?); known: fixed, step, exp, inv, multistep, poly, sigmoid, "
            "multifixed, cosine",
        ),
        (
            "surgery_stage { iterations: 5 solver { momentum: 0.5 } }",
            "surgery_stage[0].momentum: cannot differ in a stage; what can: base_lr, lr_policy, "
            "gamma, power, stepsize, stepvalue, warmup_iter, warmup_start_lr, rampup_interval, "
            "rampup_lr, min_lr, stagelr, stageiter, surgery_stop_iter, surgery_iter_gamma, "
            "surgery_iter_power",
        ),
    ],
)
def test_plans_that_make_no_sense(text: str, message: str) -> None:
    with pytest.raises(CaffeError) as error:
        planned(text)
    assert str(error.value) == message


def test_parsing_targets() -> None:
    assert parse_target("0.9", None).sparsity == 0.9
    assert parse_target("", 108).compression == 108
    assert parse_target("", None, 0.3).macs == 0.3
    by_layer = parse_target("conv2=0.97, ip1=0.99", None)
    assert [(entry.name, entry.sparsity) for entry in by_layer.layer] == [
        ("conv2", 0.97),
        ("ip1", 0.99),
    ]


@pytest.mark.parametrize("text", ["much", "conv2=0.9,ip1", "conv2=x"])
def test_targets_that_are_no_numbers(text: str) -> None:
    with pytest.raises(
        CaffeError, match=r"^--target-sparsity must be a share like 0\.9, or layers"
    ):
        parse_target(text, None)


def test_a_layer_with_a_threshold_has_no_part_in_the_target(tmp_path: Path) -> None:
    text = (
        "surgery_stage { iterations: 6 sparsity: 0.75 layer { name: 'ip1' threshold: 0.8 }"
        " layer { name: 'ip2' } }"
    )
    with recorded_log() as messages:
        make_solver(tmp_path, text, quiet=False).close()
    (line,) = [message for message in messages if message.startswith("Surgery")]
    assert line == (
        "Surgery on ip1 (threshold 0.8), ip2 (to sparsity 0.75, from iteration 0 to 3 of the "
        "stage). To train without it: --no-surgery"
    )


def test_lines_about_stages(tmp_path: Path) -> None:
    text = (
        "surgery_stage { name: 'first' iterations: 2 layer { name: 'ip1' threshold: 0.8 } }"
        "surgery_stage { iterations: 4 sparsity: 0.75 end_iter: 3 }"
    )
    with recorded_log() as messages:
        solver = make_solver(tmp_path, text, quiet=False)
        solver.step(6)
        solver.close()
    assert [message for message in messages if message.startswith("Surgery")] == [
        "Surgery in 2 stages. To train without it: --no-surgery",
        "Surgery stage 1 (first), up to iteration 2: ip1 (threshold 0.8)",
        "Surgery stage 2, up to iteration 6: ip1, ip2 (to sparsity 0.75, from iteration 0 to 3 of "
        "the stage)",
    ]
