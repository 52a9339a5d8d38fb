"""`--precision`: bfloat16 against float32, and what stays in float32 whatever it says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from caffe_dns.device.precision import use_precision
from caffe_dns.errors import CaffeError
from caffe_dns.layers.base import Context
from caffe_dns.net import Net
from tests.cli.harness import complaint, run_well
from tests.nets import input_layer, layer, make_net, recorded_log
from tests.solver.harness import make_solver, small_net

CPU = torch.device("cpu")
Capture = pytest.CaptureFixture[str]
GAUSSIAN = "weight_filler { type: 'gaussian' std: 0.2 }"
CONV = f"num_output: 8 kernel_size: 3 {GAUSSIAN}"
OFFICIAL = f"num_output: 6 kernel_size: 2 group: 2 {GAUSSIAN}"
DEEP = (
    input_layer(data=(4, 3, 12, 10), label=(4,))
    + layer("conv", "Convolution", "data", "a", f"convolution_param {{ {CONV} }}")
    + layer("bn", "BatchNorm", "a", "b")
    + layer("scale", "Scale", "b", "b", "scale_param { bias_term: true }")
    + layer("relu", "ReLU", "b", "b")
    + layer("norm", "LRN", "b", "c")
    + layer("pool", "Pooling", "c", "d", "pooling_param { kernel_size: 3 stride: 2 }")
    + layer("tanh", "TanH", "d", "e")
    + layer("official", "CConvolution", "e", "f", f"convolution_param {{ {OFFICIAL} }}")
    + layer("ip", "InnerProduct", "f", "g", f"inner_product_param {{ num_output: 5 {GAUSSIAN} }}")
)
OFTEN = "cinner_product_param { c_rate: 0.5 power: 0 }"
LOSS = "layer { name: 'loss' type: 'SoftmaxWithLoss' bottom: 'g' bottom: 'label' top: 'loss' }"


def outcome(activations: torch.dtype | None) -> tuple[Net, dict[str, Tensor]]:
    net = make_net(DEEP + LOSS, context=Context(seed=3, activations=activations))
    for index, blobs in enumerate(net.params.values()):
        for mask in blobs[2:] if len(blobs) > 2 and index > 2 else []:
            mask.view(-1)[::3] = 0
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(4, 3, 12, 10, generator=generator)
    blobs = net({"data": data, "label": torch.arange(4.0)})
    net.loss(blobs).backward()
    return net, blobs


def test_bfloat16_is_float32_with_fewer_digits() -> None:
    exact_net, exact = outcome(None)
    rough_net, rough = outcome(torch.bfloat16)
    for name in ("a", "b", "c", "d", "f", "g"):
        assert rough[name].dtype == torch.bfloat16, name
        error = (rough[name].float() - exact[name]).norm() / exact[name].norm()
        assert 1e-4 < error < 2e-2, name
    assert rough["e"].dtype == torch.float32  # a layer that was not made for less
    assert rough["loss"].dtype == torch.float32
    for found, wanted in zip(rough_net.learnable_params, exact_net.learnable_params, strict=True):
        assert found.tensor.dtype == torch.float32
        # A bias before BatchNorm has none but what rounding leaves.
        if wanted.tensor.grad is not None and wanted.tensor.grad.norm() > 1e-3:
            gradient = found.tensor.grad
            assert gradient is not None
            assert gradient.dtype == torch.float32
            error = (gradient - wanted.tensor.grad).norm() / wanted.tensor.grad.norm()
            assert error < 0.15, wanted.layer.name


def test_pruned_weights_learn_in_bfloat16() -> None:
    net, _ = outcome(torch.bfloat16)
    weight, _, mask = net.params["ip"][:3]
    assert weight.grad is not None
    assert (mask == 0).any()
    assert weight.grad[mask == 0].abs().min() > 0


@pytest.mark.parametrize("kind", ["InnerProduct", "CInnerProduct"])
def test_masks_come_from_float32(tmp_path: Path, kind: str) -> None:
    """Weights that bfloat16 cannot tell apart, on both sides of the threshold."""
    text = small_net(kind=kind)
    if kind == "CInnerProduct":
        text = text.replace("inner_product_param", f"{OFTEN} inner_product_param")
    solvers = []
    for index, activations in enumerate((None, torch.bfloat16)):
        folder = tmp_path / str(index)
        folder.mkdir()
        solver = make_solver(folder, "", text, activations=activations)
        for blobs in solver.net.params.values():
            # The official kind prunes below 0.9 of its threshold.
            least = 1 if kind == "InnerProduct" else 0.8
            blobs[0].data.uniform_(least, 1.001, generator=torch.Generator().manual_seed(4))
        assert solver.surgeon is not None
        solver.surgeon.update_masks(0)
        solver.close()
        solvers.append(solver)
    first, second = (solver.net.params for solver in solvers)
    for name, blobs in first.items():
        assert torch.equal(blobs[2], second[name][2])
        assert 0 < blobs[2].mean() < 1


def test_a_net_learns_as_well_in_bfloat16(tmp_path: Path) -> None:
    accuracies = []
    for index, activations in enumerate((None, torch.bfloat16)):
        folder = tmp_path / str(index)
        folder.mkdir()
        settings = "max_iter: 300 test_iter: 25 test_interval: 1000 test_initialization: false"
        solver = make_solver(folder, settings, surgery=False, activations=activations)
        solver.step(300)
        accuracies.append(float(solver.test(0)["accuracy"]))
        solver.close()
        assert all(param.tensor.dtype == torch.float32 for param in solver.net.learnable_params)
    assert accuracies[0] > 0.5
    assert accuracies[1] == pytest.approx(accuracies[0], abs=0.04)


def test_choosing() -> None:
    with recorded_log() as messages:
        assert use_precision("", CPU) is None
        assert use_precision("fp32", CPU) is None
        assert use_precision("bf16", CPU) is torch.bfloat16
    assert messages == ["Precision: fp32", "Precision: bf16"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("fp16", "--precision: unknown precision 'fp16'; known: fp32, tf32"),
        ("tf32", "--precision tf32 needs an NVIDIA GPU of compute capability 8.0 or later"),
    ],
)
def test_wrong_choices(flag: str, message: str) -> None:
    with pytest.raises(CaffeError) as error:
        use_precision(flag, CPU)
    assert str(error.value).startswith(message)


def test_on_the_command_line(tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "net.prototxt").write_text(small_net())
    solver = tmp_path / "solver.prototxt"
    solver.write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 4 '
        f'snapshot_prefix: "{tmp_path}/snap" solver_mode: CPU'
    )
    result = run_well(["train", "-solver", str(solver), "--precision", "bf16"], capfd)
    assert "Precision: bf16" in result.messages
    model = ["-model", f"{tmp_path}/net.prototxt", "-weights", f"{tmp_path}/snap_iter_4.caffemodel"]
    rough = run_well(["test", *model, "-iterations", "2", "--precision", "bf16"], capfd)
    assert any(message.startswith("accuracy = ") for message in rough.messages)
    run_well(["time", *model[:2], "-iterations", "1", "--precision", "bf16"], capfd)
    line = complaint(["train", "-solver", str(solver), "--precision", "half"], capfd)
    assert "unknown precision 'half'" in line
