"""What outputs cost: the table of times, and surgery to a time by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import LayerLatency, SolverParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.surgery import Surgeon, plan
from caffe_dns.surgery.costs import Latency
from tests.nets import recorded_log
from tests.surgery.test_filters import NAMES, STAGE, filters, net_text
from tests.surgery.test_surgeon import make_surgeon
from tests.surgery.test_target import disturb

#: Milliseconds at shares of a quarter and all; `sum` is a layer without weights, `prob` not here.
TIMES = {
    "stem": (1, 2),
    "left": (2, 6),
    "right": (2, 5),
    "pool": (0.5, 1.5),
    "one": (1, 3),
    "other": (1, 4),
    "flat": (1, 7),
    "last": (0.25, 0.5),
    "prob": (1, 1),
}
TABLE = " ".join(
    f"latency_table {{ name: '{name}' share: 0.25 share: 1 milliseconds: {small} "
    f"milliseconds: {whole} }}"
    for name, (small, whole) in TIMES.items()
)
#: Outputs times inputs, or channels.
WHOLE = {
    "stem": 8 * 3,
    "left": 6 * 8,
    "right": 5 * 8,
    "pool": 11,
    "one": 7 * 11,
    "other": 7 * 11,
    "flat": 12 * 63,
    "last": 4 * 12,
    "prob": 1,
}


def surgeon_of(latency: float) -> tuple[Net, Surgeon]:
    text = STAGE.format(f"latency: {latency} pattern: 'filter' {TABLE}")
    return make_surgeon(net_text("deviation"), text)


def time_of(net: Net) -> float:
    """By the table, written out for this net."""
    kept = {name: int(filters(net, name).sum()) for name in NAMES}
    joined = kept["left"] + kept["right"]
    either = int((filters(net, "one") | filters(net, "other")).sum())
    left = {
        "stem": kept["stem"] * 3,
        "left": kept["left"] * kept["stem"],
        "right": kept["right"] * kept["stem"],
        "pool": joined,
        "one": kept["one"] * joined,
        "other": kept["other"] * joined,
        "flat": kept["flat"] * either * 9,
        "last": 4 * kept["flat"],
        "prob": 1,
    }
    return sum(
        float(np.interp(left[name] / WHOLE[name], [0.25, 1], times))
        for name, times in TIMES.items()
    )


@pytest.mark.parametrize("latency", [25.0, 18.0, 12.0])
def test_a_latency(latency: float) -> None:
    net, surgeon = surgeon_of(latency)
    assert time_of(net) == 30
    for iteration in range(61):
        disturb(net, iteration)
        surgeon.update_masks(iteration)
        if iteration in (0, 20, 40, 60):
            due = latency + (30 - latency) * (1 - iteration / 60) ** 3
            assert time_of(net) <= due + 1e-6
            assert surgeon.latency() == pytest.approx(time_of(net), abs=1e-4)
    assert time_of(net) > latency - 1.5
    with recorded_log() as messages:
        surgeon.display()
    (line,) = (message for message in messages if message.startswith("Latency"))
    number = line.removeprefix("Latency by the table: ").removesuffix(" ms for one item")
    assert float(number) == pytest.approx(time_of(net), rel=1e-4)


def test_what_was_slower_when_smaller_was_so_by_chance() -> None:
    row = LayerLatency(name="a", share=[0.25, 0.5, 1], milliseconds=[3, 2, 4])
    times = Latency([row], torch.device("cpu")).between("a", torch.tensor([0, 0.25, 0.5, 0.75, 1]))
    assert times.tolist() == [3_000_000, 3_000_000, 3_000_000, 3_500_000, 4_000_000]


ROW = "latency_table { name: 'stem' share: 0.5 share: 1 milliseconds: 1 milliseconds: 2 }"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("latency: 0 pattern: 'filter'", "latency: must be above 0, but is 0"),
        (f"latency: 1 {ROW}", "latency: is for whole filters: pattern: 'filter'"),
        ("latency: 1 pattern: 'filter'", "latency: needs a latency_table, which --target-latency"),
        (f"pattern: 'filter' {ROW}", "latency_table: is of no use without a latency"),
        (
            "latency: 1 pattern: 'filter' latency_table { name: 'a' share: 0.5 milliseconds: 1 }",
            "latency_table: 'a' needs two shares or more that rise to 1",
        ),
        (
            f"latency: 1 pattern: 'filter' {ROW.replace('milliseconds: 2', 'milliseconds: nan')}",
            "latency_table: 'stem' needs two shares or more that rise to 1, and the milliseconds",
        ),
        (
            f"latency: 1 pattern: 'filter' layer {{ name: 'stem' sparsity: 0.5 }} {ROW}",
            "latency: 'stem' has a sparsity, but all layers of a stage are pruned together",
        ),
        (f"latency: 1 macs: 0.5 pattern: 'filter' {ROW}", "latency: give either this or macs"),
    ],
)
def test_stages_that_make_no_sense(stage: str, message: str) -> None:
    with pytest.raises(CaffeError) as error:
        plan(parse_text(STAGE.format(stage), SolverParameter).message)
    assert str(error.value).startswith(f"surgery_stage[0].{message}")


def test_a_latency_out_of_reach() -> None:
    with pytest.raises(CaffeError, match="out of reach: with a filter of each layer the net takes"):
        surgeon_of(3)
