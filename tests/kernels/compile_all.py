"""Compiles every kernel for a GPU that need not be there, as the package would launch it.

A program of its own: the other tests of kernels interpret them, which is decided at import. With
--all, it compiles all combinations of settings to the end; without, some of them, up to what LLVM
gets, which knows nothing of settings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from caffe_dns.kernels import convolution, half_gradients, narrow, pointwise, products, ycbcr
from caffe_dns.kernels.apart import ApartKernel
from caffe_dns.kernels.batch_norm import Normalization
from caffe_dns.kernels.bias_relu import BiasedReLU
from caffe_dns.kernels.channel_statistics import Statistics
from caffe_dns.kernels.columns import by_columns
from caffe_dns.kernels.contest import ContestKernel
from caffe_dns.kernels.cut import CutKernel, CutMask
from caffe_dns.kernels.first_convolution import FirstConvolution
from caffe_dns.kernels.flatten import Flattened
from caffe_dns.kernels.layout import LARGE
from caffe_dns.kernels.lrn import NormalizedAcross
from caffe_dns.kernels.max_pool import MaxPool
from caffe_dns.kernels.normalized import NormalizedBatch, NormalizedConvolution, NormalizedSum
from caffe_dns.kernels.normalized_pool import NormalizedMaxPool
from caffe_dns.kernels.postponed import Postponed
from caffe_dns.kernels.products import Products
from caffe_dns.kernels.sampled_sum import SampledSum
from caffe_dns.kernels.sgd import SGDKernel
from caffe_dns.kernels.softmax_loss import SoftmaxLoss
from caffe_dns.kernels.space_to_depth import FoldedWeight, space_to_depth
from caffe_dns.kernels.sum_relu import RectifiedSum
from caffe_dns.kernels.surgery import Masked, MaskKernel
from caffe_dns.kernels.transform import transform

#: H100.
TARGET = GPUTarget("cuda", 90, 32)
TYPES = {
    torch.bool: "*i1",
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.uint8: "*u8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}

compiled: set[str] = set()


class EnoughError(Exception):
    """A kernel is compiled as far as it is to be."""


def stop(*_: Any) -> None:
    """What stands in for the stage that makes LLVM's language: `CUDABackend.make_llir`."""
    raise EnoughError


def compile_instead(self: Any, *given: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """What stands in for a launch: `JITFunction.run`."""
    values = dict(zip(self.arg_names, given, strict=False)) | named
    options = {name: values.pop(name) for name in ("num_warps",) if name in values}
    options["sanitize_overflow"] = False  # which has an effect with debug only, and takes long
    signature, constants = {}, {}
    for param in self.params:
        value = values[param.name]
        signature[param.name] = kind(value, param.is_constexpr, param.do_not_specialize)
        if signature[param.name] == "constexpr":
            constants[param.name] = value
    source = ASTSource(self, signature, constants)
    with suppress(EnoughError):
        triton.compile(source, target=TARGET, options=options)
    compiled.add(self.fn.__module__)


def kind(value: Any, is_constexpr: bool, is_general: bool) -> str:
    """The type of an argument as the compiler calls it; 1 is built in, as Triton does, unless the
    kernel is to be a general one."""
    is_one = isinstance(value, int) and value == 1 and not is_general
    if is_constexpr or value is None or is_one:
        return "constexpr"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype][1:]}{value.block_shape}>"
    if isinstance(value, Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def images(last: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.zeros(4, 6, 8, 8, dtype=dtype)
    return values.contiguous(memory_format=torch.channels_last) if last else values


#: Channels innermost, bfloat16, a bias, a ReLU: any two of them in all four ways.
PAIRS = [
    (False, False, False, False),
    (False, True, True, True),
    (True, False, True, True),
    (True, True, False, True),
    (True, True, True, False),
]


def run_on_images(cases: Iterable[tuple[bool, ...]], window: int) -> None:
    """Compile what depends on how a blob of images lies in memory, in these cases.

    Loops over windows are unrolled: the smaller they are, the sooner it is done.
    """
    across = 2 * window - 1
    for last, is_half, biased, relu in cases:
        dtype = torch.bfloat16 if is_half else torch.float32
        x = images(last, dtype).requires_grad_()
        bias = torch.zeros(6, dtype=dtype, requires_grad=True) if biased else None
        kernel, stride = (window, window), (window - 1, window - 1)
        MaxPool.apply(x, bias, (4, 4), kernel, stride, (0, 0), relu).sum().backward()
        factor = torch.ones(6, requires_grad=True) if biased else None
        statistics = Statistics(torch.zeros(6), torch.zeros(6), torch.zeros(1), 0.9)
        top = NormalizedBatch.apply(x, factor, factor, bias, statistics, 1e-5, relu)
        top.sum().backward()
        postponed, copies = Postponed() if biased else None, 2 if relu else 1
        addend = NormalizedBatch.apply(
            images(last, dtype), factor, factor, None, statistics, 1e-5, False, None, postponed
        ).requires_grad_()
        left = postponed.take() if postponed is not None else None
        tops = NormalizedSum.apply(
            x, addend, factor, factor, bias, statistics, 1e-5, copies, None, left
        )
        torch.autograd.backward(tops, tops)
    for last, dtype in product((False, True), (torch.float32, torch.bfloat16)):
        x = images(last, dtype).requires_grad_()
        BiasedReLU.apply(images(last, dtype), torch.zeros(6, requires_grad=True)).sum().backward()
        NormalizedAcross.apply(x, across, 0.1, 0.75, 1.0).sum().backward()
        RectifiedSum.apply(x, images(last, dtype)).sum().backward()
        space_to_depth(images(last)[:, :3], 4, (2, 2), (3, 3), 3, dtype)
        FoldedWeight.apply(x, 4, (2, 2), 6).sum().backward()
        weight = torch.zeros(5, 6, 2, 2, dtype=dtype, requires_grad=True)
        FirstConvolution.apply(images(last), weight, weight[:, 0, 0, 0], (1, 1)).sum().backward()
    run_on_rows(statistics)
    x, weight = images(last=True), torch.zeros(5, 6, window, window)
    for biased, relu in product((False, True), (False, True)):
        bias, pool = torch.zeros(5) if biased else None, (2, 2) if relu else (2, 1)
        convolution.maxima(x, weight, bias, (0, 0), pool, (3, 2), relu=relu)
    gradient = torch.zeros(4, 5, 9 - window, 9 - window)
    convolution.parameter_gradients(gradient, x, weight, (0, 0))
    convolution.bottom_gradient(gradient, x, weight, (0, 0))


def run_on_rows(statistics: Statistics) -> None:
    """Compile what blobs of many channels have, innermost in memory."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(2, 64, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        pointwise.product(x, torch.zeros(64, 64, 1, 1, dtype=dtype))
        ones = torch.ones(64)
        left = Normalization(x, ones, ones, None, None, True)
        weight = torch.zeros(64, 1, 3, 3, dtype=dtype, requires_grad=True)
        for stride in (1, 2):
            top = NormalizedConvolution.apply(
                x.requires_grad_(), weight, None, None, None, statistics, 1e-5, True, stride, left,
                Postponed(),
            )  # fmt: skip
            top.sum().backward()
        top = NormalizedMaxPool.apply(
            x, None, None, None, statistics, 1e-5, True, None, (4, 4), (2, 2, 2, 2, 0, 0)
        )
        top.sum().backward()
        Flattened.apply(x).sum().backward()
        # So large that it is streamed.
        large = torch.empty(LARGE // 64, 64, dtype=dtype, requires_grad=True)
        top = NormalizedBatch.apply(large, None, None, None, statistics, 1e-5, True)
        top.backward(top)
        # Eight channels' signs take a byte.
        tops = NormalizedSum.apply(x.requires_grad_(), x, None, None, None, statistics, 1e-5, 1)
        torch.autograd.backward(tops, tops)
        for before in (None, left):
            (top,) = SampledSum.apply(x, x, None, None, None, statistics, 1e-5, 1, None, before, 2)
            top.sum().backward()
    x = torch.zeros(2, 64, 8, 8).contiguous(memory_format=torch.channels_last)
    for pad in (0, 1):
        window = 2 * pad + 1
        half_gradients.gradients(x, x, torch.zeros(64, 64, window, window), (pad, pad), below=True)


def run_without_images() -> None:
    flags = (False, True)
    for l1, nesterov in product(flags, flags):
        weights = [torch.zeros(5)]
        kernel = SGDKernel(
            weights, weights, [1.0], [0.0], momentum=0.9, l1=l1, nesterov=nesterov,
            clip=1.0 if l1 else None,
        )  # fmt: skip
        kernel.run(weights, torch.ones(()))
        products.LARGE = 0 if nesterov else 6
        masks = [weights[0] if l1 else None]
        for made in Products(weights, masks, torch.bfloat16 if l1 else torch.float32).run():
            if not isinstance(made, Tensor):
                made()
    apart = ApartKernel(weights, weights, weights)
    apart.split()
    apart.merge()
    ContestKernel([torch.zeros(5)]).run(torch.zeros(5), *torch.zeros(3, 1))
    by_columns(torch.zeros(4, 6))
    for bias in (None, torch.zeros(4)):
        narrow.top(torch.zeros(3, 6), torch.zeros(4, 6), bias)
    narrow.bottom_gradient(torch.zeros(3, 4), torch.zeros(4, 6))
    for labels in (torch.zeros(4), torch.zeros(4, dtype=torch.int64)):
        SoftmaxLoss.apply(torch.zeros(4, 10), labels, 1.0, 87.0)
    weight, counter = torch.zeros(5), torch.zeros((), dtype=torch.int64)
    CutKernel([CutMask(weight, counter, 0)]).run(weight, weight)
    for moments in (None, torch.zeros(2)):
        MaskKernel([Masked(weight.clone, weight, 1.0, moments, counter, 0)]).run()
    means = (None, torch.zeros(3, 1, 1), torch.zeros(3, 8, 8))
    for given, mean in product(flags, means):
        pixels = torch.zeros(2, 3, 5, 5, dtype=torch.uint8)
        cuts = torch.zeros(2, 3, dtype=torch.int64) if given else None
        transform(pixels, cuts, mean, (1, 2), 0.5)
    ycbcr.pixels(pixels.flatten(), torch.zeros(2, 12, dtype=torch.int64), pixels)


if __name__ == "__main__":
    triton.JITFunction.run = compile_instead
    if "--all" in sys.argv:
        run_on_images(product((False, True), repeat=4), window=3)
    else:
        CUDABackend.make_llir = stop
        run_on_images(PAIRS, window=2)
    run_without_images()
    print(" ".join(sorted(compiled)))
