"""Compiled programs against the layers themselves, in float64."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import TEST
from tests.nets import input_layer, layer, make_net

pytest.importorskip("numba")
from caffe_dns.sparse import kernels, tables
from caffe_dns.sparse.operations import adder
from caffe_dns.sparse.program import MOST_IMAGES, Program

IMAGE = (4, 9, 7)


def chain(*layers: tuple[str, str]) -> str:
    """Layers of these types and settings, one on the other."""
    text, bottom = input_layer(data=(2, *IMAGE)), "data"
    for number, (kind, settings) in enumerate(layers):
        top = f"top{number}"
        text += layer(top, kind, bottom, top, settings)
        bottom = top
    return text


def pruned(text: str, kept: float = 0.3) -> Net:
    """The net with random numbers, of which so many are left."""
    net = make_net(text, TEST)
    generator = torch.Generator().manual_seed(5)
    for blobs in net.params.values():
        for blob in blobs:
            blob.data.copy_(torch.randn(blob.shape, generator=generator) / 2)
            if blob.dim() > 1:
                blob.data.mul_(torch.rand(blob.shape, generator=generator) < kept)
    for step in net.steps:
        if step.layer.type == "BatchNorm":
            for blob in step.layer.blobs:
                blob.data.abs_().add_(0.5)
    return net


def layers_and_program(net: Net, images: Tensor) -> tuple[Tensor, Tensor]:
    """The top in float64 and what a program gives."""
    program = Program([step.layer for step in net.steps[1:]], tuple(images.shape[1:]))
    found = program(images)
    with torch.no_grad():
        wanted = net.double()({"data": images.double()})[net.outputs[0]]
    return wanted, found


def check(text: str, num: int = 2) -> None:
    images = torch.randn((num, *IMAGE), generator=torch.Generator().manual_seed(7))
    wanted, found = layers_and_program(pruned(text), images)
    assert found.shape == wanted.shape
    scale = float(wanted.abs().max())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize(
    "settings",
    [
        "kernel_size: 3",
        "kernel_size: 3 pad: 1 bias_term: false",
        "kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2 group: 2",
        "kernel_size: 3 stride: 2",
        "kernel_size: 2 stride_h: 1 stride_w: 3 pad: 1 group: 4",
        "kernel_size: 2 dilation: 3 pad: 2",
    ],
)
@pytest.mark.parametrize("num", [1, 3])
def test_convolutions(settings: str, num: int) -> None:
    convolution = ("Convolution", f"convolution_param {{ num_output: 8 {settings} }}")
    check(chain(convolution, ("ReLU", "")), num)


@pytest.mark.parametrize(
    "settings",
    [
        "kernel_size: 3 pad: 1",
        "kernel_h: 1 kernel_w: 5 pad_h: 0 pad_w: 2 group: 4 dilation: 1",
        "kernel_size: 6 stride_h: 1 stride_w: 2",
    ],
)
@pytest.mark.parametrize("num", [1, 3])
def test_copies_of_large_images(settings: str, num: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where vectors of one image are read whole because there is a copy for each column."""
    monkeypatch.setattr(tables, "READS_LINES", True)
    image = (4, 40, 28)
    text = input_layer(data=(1, *image))
    settings = f"convolution_param {{ num_output: 48 {settings} }}"
    text += layer("conv", "Convolution", "data", "conv", settings)
    net = pruned(text + layer("relu", "ReLU", "conv", "conv"))
    images = torch.randn((num, *image), generator=torch.Generator().manual_seed(3))
    split = Program([step.layer for step in net.steps[1:]], image)._tables[0][0]
    assert split[kernels.COPIES] == (5 if "kernel_w: 5" in settings else 3)
    wanted, found = layers_and_program(net, images)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        "kernel_size: 3 stride: 2",
        "kernel_size: 2 stride: 3 pad: 1",
        "kernel_h: 2 kernel_w: 3 stride: 1 pad_h: 0 pad_w: 1",
        "kernel_size: 2 stride: 2 round_mode: FLOOR",
        "global_pooling: true",
    ],
)
@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("num", [1, 3])
def test_pooling(settings: str, method: str, num: int) -> None:
    """Also where a row is longer than what of it counts: the top of a convolution."""
    pooling = ("Pooling", f"pooling_param {{ pool: {method} {settings} }}")
    convolution = ("Convolution", "convolution_param { num_output: 4 kernel_size: 2 }")
    check(chain(pooling), num)
    check(chain(convolution, pooling), num)


@pytest.mark.parametrize(
    "convolution",
    [
        "kernel_size: 2",
        "kernel_size: 3 pad: 2 group: 2 dilation: 2",
        "kernel_size: 2 stride: 2 pad: 1",
    ],
)
@pytest.mark.parametrize("num", [1, 3, 20])
def test_pooling_of_convolutions(convolution: str, num: int) -> None:
    """Of tops of 8 x 6, 9 x 7 and 5 x 4: windows that are whole, and some that are clipped."""
    settings = f"convolution_param {{ num_output: 4 {convolution} }}"
    scale = ("Scale", "scale_param { bias_term: true }")
    for window in ("kernel_size: 2 stride: 2", "kernel_h: 1 stride_h: 1 kernel_w: 2 stride_w: 2"):
        pooling = ("Pooling", f"pooling_param {{ pool: MAX {window} }}")
        last = ("Convolution", "convolution_param { num_output: 3 kernel_h: 2 kernel_w: 1 }")
        check(chain(("Convolution", settings), pooling, ("ReLU", ""), pooling, last), num)
        check(chain(("Convolution", settings), scale, ("ReLU", ""), pooling, scale, last), num)


@pytest.mark.parametrize("num", [1, 5])
def test_the_rest(num: int) -> None:
    convolution = ("Convolution", "convolution_param { num_output: 6 kernel_size: 3 }")
    scale = ("Scale", "scale_param { bias_term: true }")
    product = ("InnerProduct", "inner_product_param { num_output: 5 }")
    check(chain(("ReLU", ""), convolution, ("BatchNorm", ""), scale, ("ReLU", ""), product), num)
    check(chain(("BatchNorm", ""), scale, convolution, ("ReLU", ""), scale), num)
    transposed = ("InnerProduct", "inner_product_param { num_output: 5 transpose: true }")
    check(chain(("Flatten", ""), ("Dropout", ""), transposed, ("Softmax", "")), num)
    check(chain(("Dropout", "")), num)


@pytest.mark.parametrize("kernel", [1, 2])
def test_places_become_channels(kernel: int) -> None:
    """Also behind rows that go on beyond their width, as those of a kernel of 2 do."""
    settings = f"convolution_param {{ num_output: 3 kernel_size: {kernel} }}"
    layers = [("Convolution", settings), ("Flatten", "")]
    check(chain(*layers))
    check(chain(*layers, ("Scale", "scale_param { bias_term: true }"), ("ReLU", "")))
    check(chain(*layers, ("BatchNorm", "")), num=1)
    check(chain(*layers, ("Softmax", "")))


def test_more_images_than_a_buffer_holds() -> None:
    check(chain(("InnerProduct", "inner_product_param { num_output: 3 }")), 2 * MOST_IMAGES + 3)


def test_a_plane_of_several_chunks() -> None:
    text = input_layer(data=(1, 2, 50, 60)) + layer(
        "c", "Convolution", "data", "c", "convolution_param { num_output: 3 kernel_size: 5 }"
    )
    images = torch.randn((1, 2, 50, 60), generator=torch.Generator().manual_seed(7))
    wanted, found = layers_and_program(pruned(text), images)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 3, 5])
@pytest.mark.parametrize("num", [1, 2])
def test_many_channels(stride: int, num: int) -> None:
    """More than stay in a near cache, so that they are read in pieces."""
    settings = f"num_output: 4 group: 2 kernel_size: 3 pad: 2 stride: {stride}"
    shape = (num, 400, 15, 16)
    text = input_layer(data=shape)
    text += layer("c", "Convolution", "data", "c", f"convolution_param {{ {settings} }}")
    images = torch.randn(shape, generator=torch.Generator().manual_seed(7))
    wanted, found = layers_and_program(pruned(text), images)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("num", [1, 40])
def test_nan_is_passed_on(num: int) -> None:
    pooling = ("Pooling", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    convolution = ("Convolution", "convolution_param { num_output: 4 kernel_size: 2 }")
    for first in (("ReLU", ""), convolution):
        net = pruned(chain(first, ("ReLU", ""), pooling), kept=1)
        images = torch.zeros((num, *IMAGE))
        images[0, 1, 2, 3] = float("nan")
        wanted, found = layers_and_program(net, images)
        assert torch.equal(found.isnan(), wanted.isnan())
        assert found.isnan().any()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ReLU", "relu_param { negative_slope: 0.1 }"),
        ("Deconvolution", "convolution_param { num_output: 2 kernel_size: 2 }"),
        ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"),
        ("Pooling", "pooling_param { kernel_size: 2 pad_r: 1 }"),
        ("Convolution", "convolution_param { num_output: 2 kernel_size: 2 pad_r: 1 }"),
        ("Convolution", "convolution_param { num_output: 2 kernel_size: 8 stride: 2 }"),
        ("BatchNorm", "batch_norm_param { use_global_stats: false }"),
        ("Scale", "scale_param { axis: 2 }"),
        ("InnerProduct", "inner_product_param { num_output: 2 axis: 2 }"),
        ("Softmax", ""),
        ("Flatten", "flatten_param { axis: 2 }"),
        ("Sigmoid", ""),
    ],
)
def test_what_is_left_to_pytorch(kind: str, settings: str) -> None:
    net = make_net(chain((kind, settings)), TEST)
    assert adder(net.steps[-1].layer, (2, *IMAGE)) is None


def small_program() -> Program:
    net = pruned(chain(("Convolution", "convolution_param { num_output: 5 kernel_size: 3 }")))
    return Program([step.layer for step in net.steps[1:]], IMAGE)


def test_threads_have_buffers_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    program, images = small_program(), torch.ones(1, *IMAGE)
    all_are_within, used = Barrier(3, timeout=60), []

    def run(arrays: int, buffers: int, source: int, tops: int, num: int) -> None:
        used.append(buffers)
        all_are_within.wait()

    monkeypatch.setattr(kernels, "run", run)
    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(program, [images] * 3))
    first, second = set(used[:3]), set(used[3:])
    assert len(first) == 3
    assert first == second  # those that were given back


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_a_copy_reads_its_own_tables(copied: Callable[[Program], Program]) -> None:
    program, images = small_program(), torch.ones(1, *IMAGE)
    wanted = program(images)
    other = copied(program)
    for table in program._tables:
        table[...] = 0
    torch.testing.assert_close(other(images), wanted, rtol=0, atol=0)
