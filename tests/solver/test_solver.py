"""The training loop: what happens when, and what is logged about it."""

from __future__ import annotations

import re
import weakref
from pathlib import Path

import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.solver.signals import Action
from caffe_dns.solver.solver import Solver
from tests.nets import recorded_log
from tests.solver.harness import make_solver, small_net, weights_of

TESTED = "test_iter: 2 test_interval: 3"


def events(messages: list[str], *kinds: str) -> list[str]:
    """The messages that begin with one of `kinds`, without what time it took."""
    plain = [re.sub(r" \(.* iters\)", "", message) for message in messages]
    return [message for message in plain if message.startswith(kinds)]


def solve(folder: Path, settings: str, net: str | None = None) -> tuple[Solver, list[str]]:
    """Train up to max_iter; returns what was logged."""
    solver = make_solver(folder, settings, net)
    with recorded_log() as messages:
        solver.solve()
    solver.close()
    return solver, messages


# When what happens --------------------------------------------------------------------------------


def test_tests_displays_and_snapshots(tmp_path: Path) -> None:
    settings = f"display: 2 snapshot: 4 snapshot_after_train: true {TESTED}"
    _, messages = solve(tmp_path, settings)
    found = events(messages, "Iteration", "Snapshotting to", "Solving", "Opt")
    assert [re.sub(r"= [\d.]+$", "= #", message) for message in found] == [
        "Solving small",
        "Iteration 0, Testing net (#0)",
        "Iteration 0, loss = #",
        "Iteration 0, lr = #",
        "Iteration 2, loss = #",
        "Iteration 2, lr = #",
        "Iteration 3, Testing net (#0)",
        f"Snapshotting to binary proto file {tmp_path}/snap_iter_4.caffemodel",
        "Iteration 4, loss = #",
        "Iteration 4, lr = #",
        f"Snapshotting to binary proto file {tmp_path}/snap_iter_6.caffemodel",
        "Iteration 6, loss = #",
        "Iteration 6, Testing net (#0)",
        "Optimization Done.",
    ]
    assert {path.name for path in tmp_path.glob("snap*")} == {
        f"snap_iter_{n}.{kind}" for n in (4, 6) for kind in ("caffemodel", "solverstate")
    }


def test_no_second_snapshot_at_the_end(tmp_path: Path) -> None:
    _, messages = solve(tmp_path, "snapshot: 3 snapshot_after_train: true")
    assert len(events(messages, "Snapshotting to")) == 2


def test_no_first_test(tmp_path: Path) -> None:
    _, messages = solve(tmp_path, f"test_initialization: false {TESTED}")
    wanted = [f"Iteration {n}, Testing net (#0)" for n in (3, 6)]
    assert events(messages, "Iteration") == wanted


def test_nothing_asked_for_nothing_logged(tmp_path: Path) -> None:
    _, messages = solve(tmp_path, "")
    assert messages == ["Solving small", "Learning Rate Policy: fixed", "Optimization Done."]


def test_several_test_nets(tmp_path: Path) -> None:
    _, messages = solve(tmp_path, f"max_iter: 1 {TESTED} test_iter: 1")
    assert events(messages, "Iteration") == [f"Iteration 0, Testing net (#{n})" for n in (0, 1)]


def test_steps_may_be_taken_one_by_one(tmp_path: Path) -> None:
    whole, parts = make_solver(tmp_path), make_solver(tmp_path)
    whole.step(5)
    for count in (1, 3, 1):
        parts.step(count)
    assert whole.iteration == parts.iteration == 5
    for key, values in weights_of(whole).items():
        assert torch.equal(values, weights_of(parts)[key])


def test_callers_are_told_of_iterations(tmp_path: Path) -> None:
    solver = make_solver(tmp_path)
    seen: list[int] = []
    solver.on_iteration = lambda: seen.append(solver.iteration)
    solver.step(3)
    assert seen == [1, 2, 3]


def test_multistep_is_logged_before_the_rate(tmp_path: Path) -> None:
    settings = "display: 1 lr_policy: 'multistep' gamma: 0.1 stepvalue: 1 stepvalue: 1 max_iter: 3"
    _, messages = solve(tmp_path, settings)
    rates = [m for m in messages if "MultiStep" in m or ", lr = " in m]
    assert rates == [
        "Iteration 0, lr = 0.1",
        "MultiStep Status: Iteration 1, step = 1",
        "Iteration 1, lr = 0.01",
        "MultiStep Status: Iteration 2, step = 2",
        "Iteration 2, lr = 0.001",
    ]


def test_clipping_is_logged_at_every_iteration(tmp_path: Path) -> None:
    _, messages = solve(tmp_path, "clip_gradients: 0.001")
    assert len(events(messages, "Gradient clipping: scaling down gradients (L2 norm")) == 6


# Losses and scores --------------------------------------------------------------------------------


def losses(messages: list[str]) -> list[float]:
    found = [re.fullmatch(r"Iteration \d+, loss = (.*)", m) for m in events(messages, "Iteration")]
    return [float(match[1]) for match in found if match]


@pytest.mark.parametrize("window", [2, 3, 100])
def test_displayed_losses_are_means_of_the_last_ones(tmp_path: Path, window: int) -> None:
    settings = "display: 1 max_iter: 7"
    each = losses(solve(tmp_path, settings)[1])
    smoothed = losses(solve(tmp_path, f"{settings} average_loss: {window}")[1])
    expected = [
        sum(part) / len(part) for part in (each[max(0, n - window) : n] for n in range(1, 9))
    ]
    assert len(each) == 8
    assert smoothed == pytest.approx(expected, rel=1e-4)


def test_smoothing_starts_anew_with_each_call_of_step(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "display: 1 average_loss: 10")
    with recorded_log() as first:
        solver.step(3)
    with recorded_log() as second:
        solver.step(2)
    plain = make_solver(tmp_path, "display: 1")
    with recorded_log() as each:
        plain.step(5)
    single = losses(each)
    assert losses(first)[2] == pytest.approx(sum(single[:3]) / 3, rel=1e-4)
    assert losses(second) == pytest.approx([single[3], sum(single[3:]) / 2], rel=1e-4)


def test_the_loss_of_an_iteration_is_the_mean_of_its_batches(tmp_path: Path) -> None:
    settings = "display: 1 base_lr: 0 max_iter: 2 test_interval: 100"
    each = losses(solve(tmp_path, settings.replace("max_iter: 2", "max_iter: 4"))[1])
    both = losses(solve(tmp_path, f"{settings} iter_size: 2")[1])
    assert both[:2] == pytest.approx([sum(each[:2]) / 2, sum(each[2:4]) / 2], rel=1e-4)


def test_batches_of_an_iteration_are_read_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that an iter_size takes time, and no memory."""
    solver = make_solver(tmp_path, "iter_size: 40 max_iter: 2 display: 1")
    read, alive, most = solver.net.read_sources, weakref.WeakSet[object](), 0

    def read_and_count(into: object) -> dict[str, torch.Tensor]:
        nonlocal most
        batch = {name: tensor.clone() for name, tensor in read().items()}
        alive.update(batch.values())
        most = max(most, len(alive) // len(batch))
        return batch

    monkeypatch.setattr(solver.net, "read_sources", read_and_count)
    solver.step(2)
    solver.close()
    assert most <= 3


def test_scores_are_means_over_the_batches(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "test_iter: 3 test_interval: 1 test_compute_loss: true")
    with recorded_log() as messages:
        scores = solver.test(0)
    net = make_solver(tmp_path, TESTED).test_nets[0]
    with torch.no_grad():
        passes = [net() for _ in range(3)]
    for name in ("accuracy", "loss"):
        expected = sum(float(blobs[name]) for blobs in passes) / 3
        assert float(scores[name]) == pytest.approx(expected, rel=1e-5)
    loss, accuracy = float(scores["loss"]), float(scores["accuracy"])
    assert messages[1].startswith("Test loss: ")
    assert float(messages[1].split()[-1]) == pytest.approx(loss, rel=1e-5)
    assert messages[2:] == [
        f"    Test net output #0: accuracy = {accuracy:.6g}",
        f"    Test net output #1: loss = {loss:.6g} (* 1 = {loss:.6g} loss)",
    ]


def test_tests_see_the_trained_weights_and_leave_them_alone(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, TESTED)
    untrained = solver.test(0)["loss"]
    solver.step(6)
    before = weights_of(solver)
    trained = solver.test(0)["loss"]
    assert float(trained) != float(untrained)
    assert all(torch.equal(values, before[key]) for key, values in weights_of(solver).items())
    assert solver.test_nets[0].params["ip1"][2] is solver.net.params["ip1"][2]


def test_layers_without_a_partner_are_named_at_each_test(tmp_path: Path) -> None:
    extra = 'layer { name: "only" type: "Silence" bottom: "label" include { phase: TRAIN } }'
    text = small_net().replace('layer { name: "accuracy"', f'{extra} layer {{ name: "accuracy"')
    _, messages = solve(tmp_path, TESTED, text)
    starts = [i for i, m in enumerate(messages) if ", Testing net" in m]
    assert len(starts) == 3
    for start in starts:
        assert messages[start + 1] == "Ignoring source layer only"


def test_a_test_of_no_batches(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "test_iter: 0 test_interval: 1 test_compute_loss: true")
    with recorded_log() as messages:
        assert solver.test(0) == {}
    assert messages[1:] == ["Test loss: nan"]


# debug_info ---------------------------------------------------------------------------------------


def test_debug_info_is_for_displays_and_tests(tmp_path: Path) -> None:
    settings = "debug_info: true display: 2 max_iter: 3 test_iter: 2 test_interval: 2"
    _, messages = solve(tmp_path, settings)
    top = "    [Forward] Layer mnist, top blob data data: "
    places = [
        m.startswith(top)
        for m in messages
        if m.startswith((top, "Iteration", "    [Backward] All"))
    ]
    # Two batches of each test; one of each displayed iteration, which ends with its norms.
    assert (
        places == [False, True, True, True] + [False] * 3 + [False, True, True, True] + [False] * 3
    )


@pytest.mark.parametrize(("display", "shown"), [(1, True), (2, False)])
def test_debug_info_of_the_pass_after_the_last_iteration(
    tmp_path: Path, display: int, shown: bool
) -> None:
    """It is that of the last iteration (`Solver::Step` sets it, `Solver::Solve` leaves it)."""
    _, messages = solve(tmp_path, f"debug_info: true display: {display} max_iter: 2")
    last = messages.index(events(messages, "Iteration 2, loss")[0])
    assert ("[Forward]" in messages[last - 1]) == shown


def test_a_nets_own_debug_info_does_not_count(tmp_path: Path) -> None:
    _, messages = solve(tmp_path, "display: 1", "debug_info: true " + small_net())
    assert not events(messages, "    [Forward]")


# Signals ------------------------------------------------------------------------------------------


def actions(*wanted: str) -> list[Action]:
    return [Action(name) for name in wanted]


def polled(solver: Solver, wanted: list[Action]) -> None:
    """Let the solver find these actions, one each time it looks."""
    rest = iter(wanted)
    solver.poll = lambda: next(rest, Action.NONE)


def test_stopping(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, f"snapshot_after_train: true display: 1 {TESTED}")
    polled(solver, actions("none", "none", "none", "stop"))
    with recorded_log() as messages:
        solver.solve()
    assert solver.iteration == 2
    assert messages[-3:] == [
        f"Snapshotting to binary proto file {tmp_path}/snap_iter_2.caffemodel",
        f"Snapshotting solver state to binary proto file {tmp_path}/snap_iter_2.solverstate",
        "Optimization stopped early.",
    ]


def test_a_snapshot_on_demand(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "snapshot: 3")
    polled(solver, actions("snapshot", "none", "snapshot"))
    with recorded_log() as messages:
        solver.solve()
    found = re.findall(r"snap_iter_(\d+)\.caffemodel", "\n".join(messages))
    assert found == ["1", "3", "6"]


def test_stopping_in_a_test(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, f"snapshot_after_train: true {TESTED}")
    polled(solver, actions("none", "stop"))
    with recorded_log() as messages:
        solver.solve()
    assert solver.iteration == 0
    assert [re.sub(r" file .*", "", message) for message in messages[2:]] == [
        "Iteration 0, Testing net (#0)",
        "Test interrupted.",
        "Snapshotting to binary proto",
        "Snapshotting solver state to binary proto",
        "Optimization stopped early.",
    ]


def test_a_snapshot_in_a_test(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, f"max_iter: 1 snapshot_diff: true {TESTED}")
    polled(solver, actions("snapshot"))
    with recorded_log() as messages:
        solver.solve()
    assert "snap_iter_0.caffemodel" in messages[3]
    assert any("Test net output #1: loss" in message for message in messages)


# What cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("type: 'Adamm'", "type: unknown solver type 'Adamm' (did you mean 'Adam'?)"),
        ("max_iter: -1", "max_iter: must not be negative, but is -1"),
        ("average_loss: 0", "average_loss: must be at least 1, not 0"),
        ("iter_size: 0", "iter_size: must be at least 1, not 0"),
        ("lr_policy: 'fix'", "lr_policy: unknown learning rate policy 'fix'"),
        (
            "snapshot: 1 snapshot_prefix: '/gone/x'",
            "snapshot_prefix: the folder '/gone' of the snap",
        ),
    ],
)
def test_wrong_settings(tmp_path: Path, settings: str, message: str) -> None:
    with pytest.raises(CaffeError) as caught:
        make_solver(tmp_path, settings)
    assert message in str(caught.value)


def test_a_folder_for_the_last_snapshot_is_missed_before_training(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, "snapshot_after_train: true snapshot_prefix: '/gone/x'")
    with pytest.raises(CaffeError, match="the folder '/gone' of the snapshots does not exist"):
        solver.solve()
    assert solver.iteration == 0


def test_close_reaches_every_net(tmp_path: Path) -> None:
    solver = make_solver(tmp_path, TESTED)
    closed: list[int] = []
    for index, net in enumerate((solver.net, *solver.test_nets)):
        net.close = lambda index=index: closed.append(index)  # type: ignore[method-assign, misc]
    solver.close()
    assert sorted(closed) == [0, 1]
