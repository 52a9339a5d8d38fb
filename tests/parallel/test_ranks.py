"""Processes that train one net: N are the same as one process with N passes per iteration.

They are processes of their own, started through the command line; what one of them would do is
computed here.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from caffe_dns.data.db import create_database, open_database
from caffe_dns.parallel.heartbeat import BEAT
from caffe_dns.proto.caffe_pb2 import SolverParameter, SolverState
from caffe_dns.proto.text import parse_text, to_text
from tests.oracle import GOLDEN
from tests.parallel.harness import Ranks, arrays_of, assert_alike, train
from tests.solver.harness import make_solver, small_net

#: The records are read in a circle.
BATCH, ROUND = 16, 128
SETTINGS = (
    'base_lr: 0.05 lr_policy: "inv" gamma: 0.1 power: 0.75 momentum: 0.9 weight_decay: 0.001 '
    "solver_mode: CPU random_seed: 5 display: 2 test_iter: 2 test_interval: 4 max_iter: 7 "
    "snapshot: 3 clip_gradients: 4"
)
#: Two layers share one weight, and one parameter is frozen.
SHARED = """
layer { name: "ip1b" type: "InnerProduct" bottom: "pool" top: "ip1b"
  param { name: "shared" } param { lr_mult: 0 }
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "ip1c" type: "InnerProduct" bottom: "pool" top: "ip1c"
  param { name: "shared" }
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Eltwise" bottom: "ip1" bottom: "ip1b" bottom: "ip1c" top: "ip1" }
"""
#: The gradient of its weight is computed from what all ranks multiply.
LARGE = """
layer { name: "large" type: "InnerProduct" bottom: "data" top: "large"
  inner_product_param { num_output: 1400 weight_filler { type: "xavier" } } }
layer { name: "tanh" type: "TanH" bottom: "large" top: "large" }
layer { name: "ip1b" type: "InnerProduct" bottom: "large" top: "ip1b"
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Eltwise" bottom: "ip1" bottom: "ip1b" top: "ip1" }
"""

#: Without a norm of all gradients, each rank updates a part of the large weight.
IN_PARTS = "clip_gradients: -1"


def make_data(folder: Path, size: int = 2) -> None:
    """Records, and the same records in the order in which passes read what `size` ranks read."""
    source = open_database(f"{GOLDEN}/data/mnist1k_train_lmdb", "lmdb")
    values = [bytes(value) for _, (_, value) in zip(range(ROUND), source.records(), strict=False)]
    source.close()
    blocks = np.arange(ROUND).reshape(-1, BATCH, size)
    for name, order in {"ranks": range(ROUND), "passes": blocks.transpose(0, 2, 1).ravel()}.items():
        with create_database(f"{folder}/{name}_lmdb", "lmdb") as writer:
            for place, record in enumerate(order):
                writer.put(f"{place:05}".encode(), values[record])


def definition(folder: Path, data: str, kind: str = "InnerProduct", extra: str = "") -> str:
    text = small_net(kind=kind, extra=extra)
    # Uniform weights have none that are three standard deviations above their mean.
    if kind == "CInnerProduct":
        text = text.replace(f'"{kind}"', f'"{kind}" cinner_product_param {{ c_rate: 0.5 }}')
    return text.replace(f"{GOLDEN}/data/mnist1k_train_lmdb", f"{folder}/{data}_lmdb")


def prepare(
    folder: Path,
    settings: str = "",
    kind: str = "InnerProduct",
    extra: str = "",
    size: int = 2,
) -> None:
    """What ranks need for a run in `folder`."""
    make_data(folder, size)
    (folder / "net.prototxt").write_text(definition(folder, "ranks", kind, extra))
    text = merge(SETTINGS, "net: 'net.prototxt' snapshot_prefix: 'snap'", settings)
    (folder / "solver.prototxt").write_text(text)


def merge(*settings: str) -> str:
    """Settings of which later ones replace earlier ones."""
    param = SolverParameter()
    for text in settings:
        param.MergeFrom(parse_text(text, SolverParameter).message)
    return to_text(param)


def positions(state: Path) -> list[tuple[str, int]]:
    return [(p.layer, p.records) for p in SolverState.FromString(state.read_bytes()).data_position]


def assert_close(mine: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert mine.keys() == theirs.keys()
    for key, values in mine.items():
        np.testing.assert_allclose(values, theirs[key], rtol=0, atol=1e-6, err_msg=key)


@pytest.fixture(params=["CPU", pytest.param("GPU", marks=pytest.mark.slow)])
def mode(request: pytest.FixtureRequest) -> str:
    """Where ranks run; a test with it has a number of ranks, `size`."""
    mode: str = request.param
    need_gpus(mode, request.getfixturevalue("size"))
    return mode


def need_gpus(mode: str, size: int) -> None:
    if mode == "GPU" and torch.cuda.device_count() < size:
        pytest.skip("needs a GPU for each rank")


@pytest.mark.parametrize(
    ("size", "kind", "extra", "masks", "settings"),
    [
        pytest.param(2, "InnerProduct", SHARED, "2", "", id="two-deviation"),
        pytest.param(2, "CInnerProduct", "", "23", "", id="two-official"),
        pytest.param(2, "InnerProduct", LARGE, "2", "", id="two-large", marks=pytest.mark.slow),
        pytest.param(2, "InnerProduct", LARGE, "2", IN_PARTS, id="two-parts"),
        pytest.param(4, "InnerProduct", SHARED, "2", "", id="four-deviation"),
        pytest.param(4, "CInnerProduct", "", "23", "", id="four-official"),
        pytest.param(
            4, "InnerProduct", LARGE, "2", IN_PARTS, id="four-parts", marks=pytest.mark.slow
        ),
        pytest.param(8, "InnerProduct", LARGE, "2", "", id="eight-large", marks=pytest.mark.slow),
        pytest.param(8, "CInnerProduct", "", "23", "", id="eight-official", marks=pytest.mark.slow),
    ],
)
def test_ranks_do_what_passes_do(
    tmp_path: Path, mode: str, size: int, kind: str, extra: str, masks: str, settings: str
) -> None:
    prepare(tmp_path, f"surgery_iter_gamma: 0.1 solver_mode: {mode} {settings}", kind, extra, size)
    ranks = train(tmp_path, size=size)
    whole = ranks.blobs(0)
    pruned = [v for key, v in whole.items() if key[-1] in masks and "history" not in key]
    assert pruned
    assert all(0 < values.sum() < values.size for values in pruned if values.ndim > 1)

    (tmp_path / "alone").mkdir()
    passes = make_solver(
        tmp_path / "alone",
        merge(
            SETTINGS,
            f"iter_size: {size} clip_gradients: {4 * size} surgery_iter_gamma: 0.1 "
            "snapshot_after_train: true",
            settings,
        ),
        definition(tmp_path, "passes", kind, extra),
    )
    passes.solve()
    passes.close()
    assert_close(whole, arrays_of(passes))
    # The last iteration is number 6; the ranks have read 7 times a batch each.
    assert positions(tmp_path / "snap_iter_7.solverstate") == positions(
        tmp_path / "alone" / "snap_iter_7.solverstate"
    )
    scores = [line.split("] ")[1] for line in ranks.said(0).splitlines() if "Test net out" in line]
    assert len(scores) == 4
    assert not list(tmp_path.glob(".*tmp"))

    resumed = train(tmp_path, "-snapshot", "snap_iter_3.solverstate", size=size)
    assert_alike(resumed.blobs(0), whole)


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize(
    ("kind", "extra", "more"),
    [
        pytest.param("InnerProduct", "", "", id="deviation"),
        pytest.param("CInnerProduct", "", "", id="official"),
        pytest.param("InnerProduct", LARGE, IN_PARTS, id="parts"),
    ],
)
def test_ranks_stay_alike(
    tmp_path: Path, mode: str, size: int, kind: str, extra: str, more: str
) -> None:
    """`train` compares weights, masks and histories of all ranks at the end."""
    settings = f"surgery_iter_gamma: 0.01 max_iter: 500 test_interval: 100 solver_mode: {mode}"
    prepare(tmp_path, merge(settings, more), kind, extra, size=size)
    train(tmp_path, size=size)


@pytest.mark.parametrize(
    ("size", "batch", "passes", "extra", "in_parts"),
    [
        pytest.param(2, BATCH, 2, "", "", id="two"),
        pytest.param(2, BATCH, 2, LARGE, IN_PARTS, id="two-parts", marks=pytest.mark.slow),
        pytest.param(8, BATCH // 2, 1, "", "", id="eight", marks=pytest.mark.slow),
        pytest.param(8, BATCH // 2, 1, LARGE, IN_PARTS, id="eight-parts", marks=pytest.mark.slow),
    ],
)
def test_a_state_of_four_ranks_resumes_on_another_number(
    tmp_path: Path, mode: str, size: int, batch: int, passes: int, extra: str, in_parts: str
) -> None:
    """Other ranks that read as many records in an iteration come to the same."""
    need_gpus(mode, 4)
    settings = merge(f"surgery_iter_gamma: 0.1 solver_mode: {mode}", in_parts)
    prepare(tmp_path, settings, extra=extra, size=4)
    four = train(tmp_path, size=4).blobs(0)
    net = (tmp_path / "net.prototxt").read_text()
    assert f"batch_size: {BATCH}" in net
    net = net.replace(f"batch_size: {BATCH}", f"batch_size: {batch}")
    (tmp_path / "net.prototxt").write_text(net)
    settings = (tmp_path / "solver.prototxt").read_text()
    more = f"iter_size: {passes} clip_gradients: {4 * passes}"
    (tmp_path / "solver.prototxt").write_text(merge(settings, more, in_parts))
    others = train(tmp_path, "-snapshot", "snap_iter_3.solverstate", size=size)
    assert_close(others.blobs(0), four)
    assert positions(tmp_path / "snap_iter_7.solverstate")[0] == ("mnist", 7 * 4 * BATCH)


def test_another_number_of_ranks_goes_on_at_the_same_record(tmp_path: Path) -> None:
    prepare(tmp_path, "max_iter: 2 test_interval: 100 snapshot_format: HDF5")
    train(tmp_path)
    solver = make_solver(tmp_path, SETTINGS, definition(tmp_path, "ranks"))
    solver.restore(f"{tmp_path}/snap_iter_2.solverstate.h5")
    labels = solver.net.read_sources()["label"]
    solver.close()
    whole = make_solver(tmp_path, SETTINGS, definition(tmp_path, "ranks"))
    for _ in range(4):
        whole.net.read_sources()
    assert torch.equal(labels, whole.net.read_sources()["label"])
    whole.close()


def test_draws_of_layers_differ_and_seeds_do_not(tmp_path: Path) -> None:
    """Without a seed in the definition, the ranks take that of rank 0."""
    extra = 'layer { name: "drop" type: "Dropout" bottom: "ip1" top: "ip1" }'
    prepare(tmp_path, "max_iter: 2 random_seed: -1 snapshot: 0 type: 'Adam'", extra=extra)
    train(tmp_path)


# Ends ---------------------------------------------------------------------------------------------

LONG = "max_iter: 1000000 display: 20 snapshot: 0 test_interval: 100000 base_lr: 1e-4"


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Ranks]:
    """Two ranks in the middle of a long run."""
    prepare(tmp_path, LONG)
    ranks = Ranks(tmp_path, "train", "--solver", "solver.prototxt")
    try:
        ranks.wait_for(lambda text: "Iteration 20, lr" in text)
        yield ranks
    finally:
        ranks.kill()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_any_rank_stops_all(endless: Ranks, rank: int) -> None:
    endless.processes[rank].send_signal(signal.SIGHUP)
    endless.wait_for(lambda text: "Snapshotting solver state" in text)
    endless.processes[rank].send_signal(signal.SIGINT)
    assert endless.wait() == [0, 0]
    assert "] Optimization stopped early." in endless.said(0)
    assert not endless.said(1)
    assert not endless.complaints()
    assert_alike(endless.blobs(0), endless.blobs(1))
    states = sorted(endless.folder.glob("snap_iter_*.solverstate"))
    assert len(states) == 2
    for state in states:
        number = int(state.stem.rpartition("_")[2])
        assert positions(state)[0] == ("mnist", number * BATCH * 2)


def test_a_rank_that_dies_ends_the_others_and_is_named(endless: Ranks) -> None:
    endless.processes[1].kill()
    assert endless.wait() == [1, -signal.SIGKILL]
    line = endless.complaint()
    assert line.startswith("dns: rank 1 (CPU of ")
    assert line.endswith(") is gone, so all ranks end")


@pytest.mark.slow
@pytest.mark.parametrize("size", [4, 8])
def test_one_of_many_ranks_that_dies_is_named(tmp_path: Path, mode: str, size: int) -> None:
    """With the pauses between beats that runs have."""
    settings = merge(LONG, f"solver_mode: {mode}", IN_PARTS)
    prepare(tmp_path, settings, extra=LARGE, size=size)
    ranks = Ranks(tmp_path, "train", "--solver", "solver.prototxt", size=size, beat=BEAT)
    try:
        ranks.wait_for(lambda text: "Iteration 20, lr" in text)
        ranks.processes[2].kill()
        codes = ranks.wait()
    finally:
        ranks.kill()
    assert codes == [-signal.SIGKILL if rank == 2 else 1 for rank in range(size)]
    line = ranks.complaint()
    assert line.startswith(f"dns: rank 2 ({'CPU' if mode == 'CPU' else 'GPU 2'} of ")
    assert line.endswith(") is gone, so all ranks end")


def test_rank_0_that_dies_ends_the_others(endless: Ranks) -> None:
    """Nobody else has started the ranks, so rank 0 keeps the store."""
    endless.processes[0].kill()
    assert endless.wait(30) == [-signal.SIGKILL, 1]
    line = endless.complaint()
    assert line.startswith("dns: rank 0 (CPU of ")
    assert line.endswith(", so all ranks end")


@pytest.mark.parametrize("size", [2, 4])
def test_what_is_wrong_is_said_once(tmp_path: Path, size: int) -> None:
    prepare(tmp_path, "net: 'missing.prototxt'")
    ranks = Ranks(tmp_path, "train", "--solver", "solver.prototxt", size=size)
    assert ranks.wait(30) == [1] * size
    line = ranks.complaint()
    assert "missing.prototxt" in line


def test_a_rank_speaks_of_its_own_records(tmp_path: Path) -> None:
    prepare(tmp_path, LONG)
    with create_database(f"{tmp_path}/spoiled_lmdb", "lmdb") as writer:
        source = open_database(f"{tmp_path}/ranks_lmdb", "lmdb")
        for place, (key, value) in enumerate(source.records()):
            writer.put(key, b"nonsense" if place == 65 else bytes(value))
        source.close()
    (tmp_path / "net.prototxt").write_text(definition(tmp_path, "spoiled"))
    ranks = Ranks(tmp_path, "train", "--solver", "solver.prototxt")
    assert ranks.wait(40) == [1, 1]
    line = ranks.complaint()
    assert line == ranks.said(1).strip()
    assert "mnist" in line
