"""A convolution and the maximum pooling after it as one on a CPU, against the two one by one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from caffe_dns.kernels import on_cpu
from caffe_dns.layers import convolution, sparse_gradients
from caffe_dns.net import Net
from tests.nets import input_layer, layer, make_net, recorded_log

pytest.importorskip("numba")

CONVOLUTION = "num_output: 20 kernel_size: 5"
POOLING = "pool: MAX kernel_size: 2 stride: 2"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions that are small count as large ones."""
    monkeypatch.setattr(convolution, "LARGE_CONVOLUTION", 1)


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def build(
    settings: str = CONVOLUTION, pooling: str = POOLING, relu: bool = False, kind: str = ""
) -> Net:
    filler = "weight_filler { type: 'xavier' } bias_filler { type: 'gaussian' std: 0.1 }"
    text = input_layer(data=(16, 16, 14, 13))
    settings = f"convolution_param {{ {settings} {filler} }}"
    text += layer("c", kind or "Convolution", "data", "z", settings)
    text += layer("r", "ReLU", "z", "z") if relu else ""
    text += layer("p", "Pooling", "z", "p", f"pooling_param {{ {pooling} }}")
    text += "layer { name: 'loss' type: 'Reduction' bottom: 'p' top: 'l' loss_weight: 1 "
    return make_net(text + "reduction_param { operation: SUMSQ } }")


def gradients(net: Net, data: Tensor, *, one_by_one: bool, of_data: bool = True) -> list[Tensor]:
    """The loss, and the gradients of the bottom, if asked for, and the parameters."""
    data = data.clone().requires_grad_(of_data)
    loss = net.loss(net.compute({"data": data}, inner=one_by_one))
    loss.backward()
    found = [loss.detach(), *(leaf.grad for leaf in (data, *net.parameters()))]
    net.zero_grad()
    return [blob for blob in found if blob is not None]


def draw(net: Net) -> Tensor:
    return torch.randn(net.blob_shapes["data"], generator=torch.Generator().manual_seed(1))


def calls(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Has a member for each time that the two run as one."""
    made, apply = [], sparse_gradients.SparseGradients.apply

    def counted(*given: object) -> Tensor:
        made.append(True)
        top: Tensor = apply(*given)
        return top

    monkeypatch.setattr(sparse_gradients.SparseGradients, "apply", counted)
    return made


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("convolution", "pooling"),
    [
        (CONVOLUTION, POOLING),
        ("num_output: 20 kernel_size: 5 stride: 1", "pool: MAX kernel_size: 3 stride: 2"),
        ("num_output: 21 kernel_h: 3 kernel_w: 4 stride_h: 1 stride_w: 2", POOLING),
        ("num_output: 40 kernel_size: 5", "pool: MAX kernel_size: 5 stride: 2"),
        ("num_output: 20 kernel_size: 4", "pool: MAX kernel_size: 2 stride: 3"),
        (CONVOLUTION, "pool: MAX kernel_size: 2 stride: 2 round_mode: FLOOR"),
    ],
)
def test_gradients(
    convolution: str, pooling: str, relu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, made = build(convolution, pooling, relu), calls(monkeypatch)
    data = draw(net)
    wanted = gradients(net, data, one_by_one=True)
    assert not made
    found = gradients(net, data, one_by_one=False)
    assert made
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize(
    "settings",
    [
        ("num_output: 20 kernel_size: 5 pad: 1", POOLING),
        ("num_output: 20 kernel_size: 5 group: 2", POOLING),
        ("num_output: 20 kernel_size: 2", POOLING),  # rows of 32 numbers
        ("num_output: 20 kernel_size: 3 dilation: 2", POOLING),
        ("num_output: 200 kernel_size: 5", POOLING),  # a large weight
        (CONVOLUTION, "pool: MAX kernel_size: 2 stride: 1"),
        (CONVOLUTION, "pool: MAX kernel_size: 3 stride: 2 pad: 1"),
        (CONVOLUTION, "pool: MAX kernel_size: 1 stride: 4"),  # the last windows have no pixel
        (CONVOLUTION, "pool: MAX kernel_size: 2 stride: 2 pad_r: 1"),
        (CONVOLUTION, "pool: AVE kernel_size: 2 stride: 2"),
    ],
)
def test_others_run_one_by_one(settings: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    net, made = build(*settings), calls(monkeypatch)
    gradients(net, draw(net), one_by_one=False)
    assert not made


def test_short_rows_where_the_bottom_has_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    net, made = build("num_output: 20 kernel_size: 2"), calls(monkeypatch)
    wanted, found = (
        gradients(net, draw(net), one_by_one=each, of_data=False) for each in (True, False)
    )
    assert made and len(found) == 3
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_where_nothing_learns_or_not_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    net, made = build(relu=True), calls(monkeypatch)
    data = draw(net)
    with torch.no_grad():
        found = net.compute({"data": data}, inner=False)["l"]
    assert torch.equal(found, net.compute({"data": data})["l"])
    exact = gradients(net.double(), data.double(), one_by_one=True)
    for own, other in zip(gradients(net, data.double(), one_by_one=False), exact, strict=True):
        assert torch.equal(own, other)
    assert not made


def test_a_numba_that_does_not_fit_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is there, but says that NumPy is too new when it is imported."""
    net, made = build(), calls(monkeypatch)
    monkeypatch.setitem(sys.modules, "caffe_dns.kernels.on_cpu.machine_code", None)
    on_cpu.works.cache_clear()
    try:
        with recorded_log() as messages:
            for _ in range(2):
                gradients(net, draw(net), one_by_one=False)
    finally:
        on_cpu.works.cache_clear()
    assert not made
    assert [text for text in messages if "numba does not work" in text] == messages[-1:]


@pytest.mark.parametrize(("most", "in_plane"), [(16 * 16 * 14 * 13, 10**9), (10**9, 90)])
def test_what_cannot_be_counted(most: int, in_plane: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution's top has planes of 10 x 9."""
    for change in (0, 1):
        monkeypatch.setattr("caffe_dns.kernels.on_cpu.from_maxima.MOST", most + change)
        monkeypatch.setattr("caffe_dns.kernels.on_cpu.from_maxima.MOST_IN_PLANE", in_plane + change)
        net, made = build(), calls(monkeypatch)
        gradients(net, draw(net), one_by_one=False)
        assert bool(made) == bool(change)


def test_a_weight_that_lies_as_another_layer_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    net, made = build(), calls(monkeypatch)
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    weight = next(net.parameters())
    assert not weight.is_contiguous(memory_format=torch.channels_last)
    data = draw(net)
    wanted = gradients(net, data, one_by_one=True)
    found = gradients(net, data, one_by_one=False)
    assert made
    for own, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_no_images(monkeypatch: pytest.MonkeyPatch) -> None:
    net, made = build(), calls(monkeypatch)
    _, below, *others = gradients(net, draw(net)[:0], one_by_one=False)
    assert made
    assert below.shape == (0, 16, 14, 13)
    assert not any(other.any() for other in others)


def test_a_deconvolution_is_none() -> None:
    net = build(kind="Deconvolution")
    gradients(net, draw(net), one_by_one=False)
