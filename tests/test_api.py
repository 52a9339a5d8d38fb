"""`load_net` as a program uses it."""

from __future__ import annotations

from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pytest
import torch

import caffe_dns
from caffe_dns import CaffeError, load_net
from caffe_dns.net import Net
from caffe_dns.weights import save_weights
from tests.nets import input_layer, ip, layer, recorded_log
from tests.oracle import GOLDEN

TEXT = (
    "name: 'api' "
    + input_layer(data=(4, 3, 2), label=(4,))
    + ip("hidden", "data")
    + layer("relu", "ReLU", "hidden", "hidden")
    + layer("drop", "Dropout", "hidden", "hidden", "include { phase: TRAIN }")
    + ip("score", "hidden", outputs=7)
    + layer("loss", "SoftmaxWithLoss", "score label", "loss", "loss_weight: 2")
    + layer("extra", "Silence", "data", "", "include { stage: 'x' min_level: 1 }")
)


@pytest.fixture
def definition(tmp_path: Path) -> Path:
    path = tmp_path / "net.prototxt"
    path.write_text(TEXT)
    return path


def values() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    return {
        "data": torch.rand(4, 3, 2, generator=generator),
        "label": torch.tensor([0.0, 6, 2, 3]),
    }


def test_what_the_package_offers() -> None:
    assert caffe_dns.__all__ == ["CaffeError", "Net", "Pruner", "load_net", "prune"]
    assert all(getattr(caffe_dns, name).__name__ == name for name in caffe_dns.__all__)
    assert caffe_dns.__version__


def test_a_net_is_a_module(definition: Path) -> None:
    net = load_net(definition)
    assert isinstance(net, torch.nn.Module)
    assert net.name == "api"
    assert not any(module.training for module in net.children())
    names = {name for name, _ in net.named_parameters()}
    assert len(names) == 4
    assert list(net.state_dict()) == [
        f"{layer}.{name}"
        for layer in ("hidden", "score")
        for name in ("weight", "bias", "weight_mask")
    ]
    copy = load_net(definition, seed=1)
    assert not torch.equal(copy.params["hidden"][0], net.params["hidden"][0])
    copy.load_state_dict(net.state_dict())
    assert torch.equal(copy(values())["score"], net(values())["score"])


def test_forward_gives_all_blobs(definition: Path) -> None:
    net = load_net(definition, surgery=False)
    blobs = net(values())
    assert list(blobs) == ["data", "label", "hidden", "score", "loss"]
    (w1, b1), (w2, b2) = net.params["hidden"], net.params["score"]
    hidden = (values()["data"].reshape(4, 6) @ w1.T + b1).clamp(min=0)
    score = hidden @ w2.T + b2
    torch.testing.assert_close(blobs["hidden"], hidden)
    torch.testing.assert_close(blobs["score"], score)
    expected = torch.nn.functional.cross_entropy(score, values()["label"].long())
    torch.testing.assert_close(blobs["loss"], expected)
    assert net.loss_weights == {"loss": 2.0}
    torch.testing.assert_close(net.loss(blobs), 2 * expected)


def test_gradients_in_inputs_and_parameters(definition: Path) -> None:
    net = load_net(definition, "TRAIN", surgery=False)
    inputs = values()
    inputs["data"].requires_grad_()
    net.loss(net(inputs)).backward()
    assert inputs["data"].grad is not None
    assert inputs["data"].grad.abs().sum() > 0
    assert inputs["label"].grad is None
    for blobs in net.params.values():
        assert all(blob.grad is not None and blob.grad.any() for blob in blobs)
    before = net.params["score"][0].detach().clone()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    assert not torch.equal(net.params["score"][0], before)


def test_arrays_and_other_batch_sizes(definition: Path) -> None:
    net = load_net(definition)
    few = {name: value[:3].numpy().astype(np.float64) for name, value in values().items()}
    with torch.no_grad():
        torch.testing.assert_close(net(few)["score"], net(values())["score"][:3])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"data": 0}, "missing input 'label'; the inputs of this net are data, label"),
        ({}, "missing input 'data'; the inputs of this net are data, label"),
        ({"data": 0, "label": 0, "lable": 0}, "unknown input 'lable'; the inputs of this net are"),
    ],
)
def test_wrong_inputs(definition: Path, inputs: dict[str, int], message: str) -> None:
    net = load_net(definition)
    with pytest.raises(CaffeError) as caught:
        net({name: torch.zeros(()) for name in inputs})
    assert message in str(caught.value)


def test_an_input_of_the_wrong_shape(definition: Path) -> None:
    net = load_net(definition)
    with pytest.raises(
        CaffeError, match="layer 'hidden': the weight takes 6 inputs, the bottom has"
    ):
        net({**values(), "data": torch.rand(4, 3, 3)})


def test_a_net_without_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    net = load_net(
        "runs/sgd_inv/train_val.prototxt", "TEST", "runs/sgd_inv/snap_iter_40.caffemodel"
    )
    with torch.no_grad():
        blobs = net()
    assert blobs["data"].shape == (50, 1, 28, 28)
    assert float(blobs["accuracy"]) == pytest.approx(0.68)
    with pytest.raises(CaffeError, match="unknown input 'data'; the inputs of this net are none"):
        net({"data": blobs["data"]})
    net.close()


def test_phase_level_and_stages(definition: Path) -> None:
    def names(net: Net) -> set[str]:
        return {step.layer.name for step in net.steps}

    assert "drop" not in names(load_net(definition))
    assert "drop" in names(load_net(definition, "TRAIN"))
    assert "extra" not in names(load_net(definition, stages=["x"]))
    assert "extra" in names(load_net(definition, stages=["x"], level=1))
    with pytest.raises(CaffeError, match="unknown phase 'train'; known: TRAIN, TEST"):
        load_net(definition, "train")


def test_weights(definition: Path, tmp_path: Path) -> None:
    first, second = load_net(definition, seed=1), load_net(definition, seed=2)
    save_weights(first, tmp_path / "a.caffemodel")
    save_weights(second, tmp_path / "b.caffemodel.h5", hdf5=True)
    net = load_net(definition, weights=tmp_path / "a.caffemodel")
    assert torch.equal(net.params["score"][0], first.params["score"][0])
    net = load_net(definition, weights=[tmp_path / "a.caffemodel", tmp_path / "b.caffemodel.h5"])
    assert torch.equal(net.params["score"][0], second.params["score"][0])
    with pytest.raises(CaffeError, match="gone: cannot be read"):
        load_net(definition, weights=tmp_path / "gone")


def test_quiet_unless_asked(definition: Path) -> None:
    with recorded_log() as messages:
        load_net(definition)
    assert messages == []
    with recorded_log() as messages:
        load_net(definition, quiet=False)
        load_net(definition)
    assert messages[0].startswith("The NetState phase (1) differed from")
    assert messages[-1] == "Network initialization done."
    assert sum("Network initialization done." in message for message in messages) == 1


def test_errors_leave_the_log_as_it_was(definition: Path) -> None:
    definition.write_text(TEXT.replace("num_output: 7", "num_output: 0"))
    with pytest.raises(
        CaffeError, match=r"net\.prototxt:\d+: layer 'score': .*must be given and pos"
    ):
        load_net(definition)
    with recorded_log() as messages:
        caffe_dns.log.info("still here")
    assert messages == ["still here"]


def test_a_net_that_is_loaded_keeps_its_own_thread_quiet_alone(
    definition: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, is_built, is_said = Net.__init__, Event(), Event()

    def build_and_wait(net: Net, *arguments: Any, **settings: Any) -> None:
        build(net, *arguments, **settings)
        is_built.set()
        assert is_said.wait(60)

    monkeypatch.setattr(Net, "__init__", build_and_wait)
    with recorded_log() as messages:
        thread = Thread(target=load_net, args=(definition,))
        thread.start()
        assert is_built.wait(60)
        caffe_dns.log.info("meanwhile")
        is_said.set()
        thread.join()
    assert messages == ["meanwhile"]
