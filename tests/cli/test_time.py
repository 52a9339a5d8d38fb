"""`dns time` against Caffe's own log, and what it prints beside that."""

from __future__ import annotations

import re

import pytest

from caffe_dns.profile.timing import PassTimer
from tests.cli.harness import complaint, run_well
from tests.oracle import GOLDEN

Capture = pytest.CaptureFixture[str]
NET = "runs/sgd_inv/train_val.prototxt"


@pytest.fixture(autouse=True)
def quick(in_golden_folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PassTimer, "LEAST_MILLISECONDS", 0.0)


def without_figures(messages: list[str]) -> list[str]:
    text = "\n".join(messages)
    text = re.sub(r"[\d.e+-]+ ms", "# ms", text)
    return re.sub(r"(?<=Initial loss: )[\d.]+", "#", text).split("\n")


def recorded() -> list[str]:
    """Caffe's messages, less the one on its own way to prefetch."""
    lines = (GOLDEN / "logs" / "time.log").read_text().splitlines()
    messages = [line.partition("] ")[2] for line in lines if re.match(r"[IWEF]\d{4} ", line)]
    messages.remove("Waiting for data")
    return messages


def test_the_log_is_caffes(capfd: Capture) -> None:
    result = run_well(["time", "-model", NET, "-iterations", "5", "--no-surgery"], capfd)
    assert without_figures(result.messages) == without_figures(recorded())


def test_layers_with_long_and_short_names(capfd: Capture) -> None:
    net = "runs/bn_inception/train_val.prototxt"
    result = run_well(["time", "-model", net, "-phase=TEST", "-iterations=1"], capfd)
    times = [line for line in result.messages if "ward: " in line]
    assert any(line.startswith("        i1\tforward: ") for line in times)
    assert any(line.startswith("conv1_relu1_0_split\tforward: ") for line in times)
    assert any(line.startswith("  accuracy\tbackward: ") for line in times)


def test_figures_fit_each_other(capfd: Capture) -> None:
    result = run_well(["time", "-model", NET, "-iterations", "2"], capfd)
    figures = {
        line.partition(":")[0]: float(line.split()[-2])
        for line in result.messages
        if line.startswith(("Average F", "Average B", "Total"))
    }
    both = figures["Average Forward pass"] + figures["Average Backward pass"]
    assert 0 < both <= figures["Average Forward-Backward"] * 1.001
    assert figures["Total Time"] == pytest.approx(2 * figures["Average Forward-Backward"], rel=1e-3)


def test_tells_memory_and_images_per_second(capfd: Capture) -> None:
    result = run_well(["time", "-model", NET, "-iterations", "2"], capfd)
    heading, _, *layers = result.out.splitlines()[1:12]
    assert heading.split() == (
        ["layer", "type", "forward", "ms", "backward", "ms", "parameters", "tops", "kept"]
    )
    names = [line.split()[0] for line in layers]
    assert names == ["mnist", "conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "ip2", "loss"]
    lines = dict(line.split(": ") for line in result.out.splitlines() if ": " in line)
    assert lines["Batch size"] == "32"
    for passes in ("layer by layer", "training passes"):
        rate, milliseconds = lines[f"Images per second, {passes}"].split(", ")[:2]
        assert float(rate) * float(milliseconds.split()[0]) / 1000 == pytest.approx(32, rel=1e-2)
    assert lines["Peak memory, training passes"] == "not measured on the CPU"


def test_scores_a_net_for_test(capfd: Capture) -> None:
    result = run_well(["time", "-model", NET, "-phase", "TEST", "-iterations", "1"], capfd)
    assert "Images per second, scoring passes: " in result.out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "--model"),
        (["-model", "gone.prototxt"], "gone.prototxt"),
        (["-model", NET, "-phase", "train"], "TRAIN or TEST"),
        (["-model", NET, "-iterations", "0"], "-iterations"),
        (["-model", NET, "-gpu", "99"], "99"),
    ],
)
def test_wrong_input(arguments: list[str], word: str, capfd: Capture) -> None:
    assert word in complaint(["time", *arguments], capfd)
