"""Pooling over the two spatial axes: maximum, average and stochastic.

`Window` and the functions below it compute Caffe's pooling on plain tensors, for the Pooling layer
and for other layers based on it; they know nothing of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from caffe_dns import kernels
from caffe_dns.layers.base import ALL_BOTTOMS, Layer, Shape, add_bias, check_shape, layer_types
from caffe_dns.layers.spatial import MOST, sides
from caffe_dns.proto.caffe_pb2 import PoolingParameter
from caffe_dns.proto.fields import refuse_fields

Pair = tuple[int, int]

#: Layer types, and the fields of pooling_param that only they read.
_OF_THEIR_OWN = {
    "Pooling3D": ("kernel_depth", "temporal_stride"),
    "NdPooling": ("kernel_shape", "stride_shape", "pad_shape"),
}


#: The methods that average: over windows with their padding, and without (Synopsys).
AVERAGES = (PoolingParameter.AVE, PoolingParameter.AVE_EXC_PAD)


@dataclass(frozen=True)
class Window:
    """How the window moves over an image; each pair is (height, width) in pixels.

    `ceil` says whether a window that is only partly inside the image counts. `end` is the padding
    behind the image, where it is not `pad`.
    """

    kernel: Pair
    stride: Pair = (1, 1)
    pad: Pair = (0, 0)
    ceil: bool = True
    end: Pair | None = None

    @property
    def pads(self) -> tuple[Pair, Pair]:
        """The padding before the image and behind it."""
        return self.pad, self.pad if self.end is None else self.end

    def output_size(self, image: Pair) -> Pair:
        """Rows and columns of windows (`PoolingLayer::Reshape`); below 1 where none fits."""
        height, width = (self._count(image[axis], axis) for axis in (0, 1))
        return height, width

    def covering(self, image: Pair) -> Window:
        """The window with the least padding that gives extent / stride windows, rounded up."""
        before, behind = [], []
        for axis in (0, 1):
            step = self.stride[axis]
            whole = max(self.kernel[axis] - (image[axis] % step or step), 0)
            before.append(whole // 2)
            behind.append(whole - whole // 2)
        pad, end = (before[0], before[1]), (behind[0], behind[1])
        return Window(self.kernel, self.stride, pad, False, None if pad == end else end)

    def suits_torch(self, image: Pair) -> bool:
        """Whether PyTorch's pooling supports this window and gives as many outputs as Caffe.

        PyTorch pads both ends alike, and by no more than half the kernel, and it always drops a
        last window that starts beyond the image; Caffe does so only where there is padding.
        """
        last = self._last_starts(image)
        return self.end is None and all(
            2 * self.pad[axis] <= self.kernel[axis] and last[axis] < image[axis] for axis in (0, 1)
        )

    def margins(self, image: Pair) -> list[int]:
        """The padding for `F.pad` that puts all windows inside: left, right, top, bottom.

        Negative where windows omit the last pixels.
        """
        last = self._last_starts(image)
        after = [last[axis] + self.kernel[axis] - image[axis] for axis in (0, 1)]
        return [self.pad[1], after[1], self.pad[0], after[0]]

    def areas(self, image: Pair, like: Tensor, *, padding: bool = True) -> Tensor:
        """Each window's size (rows, columns) in the image, or in its padding if that counts.

        Averages are divided by it.
        """
        sizes, end = [], self.pads[1]
        for axis, windows in enumerate(self.output_size(image)):
            starts = torch.arange(windows, dtype=like.dtype, device=like.device)
            starts = starts * self.stride[axis] - self.pad[axis]
            ends = (starts + self.kernel[axis]).clamp(max=image[axis] + end[axis] * padding)
            sizes.append(ends - (starts if padding else starts.clamp(min=0)))
        return torch.outer(*sizes)

    def _count(self, extent: int, axis: int) -> int:
        stride, pad = self.stride[axis], self.pad[axis]
        room = extent + pad + self.pads[1][axis] - self.kernel[axis]
        windows = (-(-room // stride) if self.ceil else room // stride) + 1
        if any(map(any, self.pads)) and (windows - 1) * stride >= extent + pad:
            windows -= 1
        return windows

    def _last_starts(self, image: Pair) -> Pair:
        height, width = (
            (windows - 1) * self.stride[axis] - self.pad[axis]
            for axis, windows in enumerate(self.output_size(image))
        )
        return height, width


def max_pool(bottom: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """The maximum of each window of an N x C x H x W blob, and its index in the H x W plane.

    The first maximum counts. A window without a pixel gives the lowest number and the index -1.
    """
    image = _image(bottom)
    if window.suits_torch(image):
        top, index = F.max_pool2d(
            bottom,
            window.kernel,
            window.stride,
            window.pad,
            ceil_mode=window.ceil,
            return_indices=True,
        )
        if top.requires_grad and not top.is_contiguous():
            # Otherwise PyTorch would change the layout of everything else to the gradient's.
            top.register_hook(_channels_last)
        return top, index
    lowest = torch.finfo(bottom.dtype).min
    padded = F.pad(bottom, window.margins(image), value=lowest)
    top, index = F.max_pool2d(padded, window.kernel, window.stride, return_indices=True)
    row = index // padded.shape[3] - window.pad[0]
    column = index % padded.shape[3] - window.pad[1]
    inside = (row >= 0) & (row < image[0]) & (column >= 0) & (column < image[1])
    return top, torch.where(inside, row * image[1] + column, -1)


def _channels_last(gradient: Tensor) -> Tensor:
    return gradient.contiguous(memory_format=torch.channels_last)


def max_of(
    bottom: Tensor, window: Window, bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """The first result of `max_pool`; a bias for each channel and a ReLU come before, if asked for.

    Neither changes which number is the largest.
    """
    if kernels.suit(bottom):
        from caffe_dns.kernels.max_pool import LARGEST_WINDOW, MaxPool

        if window.kernel[0] * window.kernel[1] <= LARGEST_WINDOW:
            size = window.output_size(_image(bottom))
            top: Tensor = MaxPool.apply(
                bottom, bias, size, window.kernel, window.stride, window.pad, relu
            )
            return top
    if bias is not None:
        bottom = add_bias(bottom, bias)
    return max_pool(torch.relu(bottom) if relu else bottom, window)[0]


class _Mean(torch.autograd.Function):
    """The mean of each plane of N x C x H x W; its gradient has the bottom's memory format.

    PyTorch's does not, and its reader would copy it.
    """

    @staticmethod
    def forward(ctx: Any, bottom: Tensor) -> Tensor:
        ctx.shape, ctx.strides = bottom.shape, bottom.stride()
        return bottom.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        share = gradients[0] / (ctx.shape[2] * ctx.shape[3])
        return share.new_empty_strided(ctx.shape, ctx.strides).copy_(share)


def average_pool(bottom: Tensor, window: Window, *, padding: bool = True) -> Tensor:
    """The sum of each window of an N x C x H x W blob, divided by its size, with padding or not."""
    image = _image(bottom)
    if window == Window(image) and bottom.is_cuda:
        # Forward and backward are ten times as fast as a pooling with a single window.
        mean: Tensor = _Mean.apply(bottom)
        return mean
    if window.suits_torch(image):
        return F.avg_pool2d(
            bottom,
            window.kernel,
            window.stride,
            window.pad,
            ceil_mode=window.ceil,
            count_include_pad=padding,
        )
    return _sum_pool(bottom, window) / window.areas(image, bottom, padding=padding)


def stochastic_pool(bottom: Tensor, window: Window, generator: Generator) -> Tensor:
    """An element of each window of an N x C x H x W blob, drawn in proportion to its value.

    Values are assumed to be at least 0; the window has no pad (`StoPoolForwardTrain`).
    """
    padded = F.pad(bottom, window.margins(_image(bottom)))
    windows = padded.unfold(2, window.kernel[0], window.stride[0])
    windows = windows.unfold(3, window.kernel[1], window.stride[1]).flatten(-2)
    sums = windows.detach().cumsum(-1)
    total = sums[..., -1:]
    # In (0, 1], as the generator of Caffe's GPU draws: an element of value 0 is not chosen first.
    draw = 1 - torch.rand(total.shape, generator=generator, dtype=sums.dtype, device=sums.device)
    chosen = (sums >= draw * total).to(torch.uint8).argmax(-1, keepdim=True)
    return windows.gather(-1, chosen).squeeze(-1)


def expected_pool(bottom: Tensor, window: Window) -> Tensor:
    """What `stochastic_pool` gives on average: the mean of each window, weighted by the values.

    0 where the sum is not positive (`StoPoolForwardTest`).
    """
    total = _sum_pool(bottom, window)
    positive = total > 0
    squares = torch.where(positive, _sum_pool(bottom.square(), window), 0)
    return squares / torch.where(positive, total, 1)


def _sum_pool(bottom: Tensor, window: Window) -> Tensor:
    padded = F.pad(bottom, window.margins(_image(bottom)))
    return F.avg_pool2d(padded, window.kernel, window.stride, divisor_override=1)


def _image(bottom: Tensor) -> Pair:
    return bottom.shape[2], bottom.shape[3]


@layer_types.register("Pooling")
class Pooling(Layer):
    """One value for each window of each channel (`pooling_layer.cpp`, `.cu` for STOCHASTIC).

    Bottom N x C x H x W. A second top, for MAX only, holds the index of each maximum in the H x W
    plane, as floating point numbers.
    """

    needs_numbers = ALL_BOTTOMS

    keeps_type = True

    tops = (1, 2)

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        settings = self.param.pooling_param
        refuse_fields(settings, "pooling_param", _OF_THEIR_OWN)
        self.method = settings.pool
        if self.num_tops > 1 and self.method != PoolingParameter.MAX:
            raise self.error("only MAX has a second top", "pooling_param.pool")
        kernel = (0, 0) if settings.global_pooling else self._pair("kernel_size", "kernel", 1)
        stride, pad = self._pair("stride", "stride", 1), self._pair("pad", "pad", 0)
        left, right, top, bottom = sides(self, "pooling_param")
        if (left, top) == (right, bottom):
            self._window = Window(kernel, stride, (pad[0] + top, pad[1] + left), self._ceil())
        else:
            self._window = Window(kernel, stride, (top, left), self._ceil(), (bottom, right))
        self._covers = settings.pad_type == 1
        if settings.pad_type > 1 or (self._covers and any(map(any, self._window.pads))):
            raise self.error(
                "0, or 1 without any padding, would be right", "pooling_param.pad_type"
            )
        if settings.global_pooling:
            self._check_global()
        elif any(map(any, self._window.pads)):
            self._check_pad()

    def window(self, image: Pair) -> Window:
        """The window for images of these extents."""
        if self.param.pooling_param.global_pooling:
            return Window(image)
        return self._window.covering(image) if self._covers else self._window

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        shape = bottom_shapes[0]
        if len(shape) != 4:
            raise self.error(
                f"the bottom needs 4 axes (num, channels, height, width), it has {len(shape)}",
                "bottom",
            )
        image = shape[2], shape[3]
        window = self.window(image)
        size = window.output_size(image)
        if min(size) < 1 or min(image) < 1:
            raise self.error(
                f"a kernel of {window.kernel[0]} x {window.kernel[1]} with pad {window.pad[0]} x "
                f"{window.pad[1]} does not fit into the bottom's {image[0]} x {image[1]}",
                "pooling_param.kernel_size",
            )
        left, right, top, bottom = window.margins(image)
        padded = (*shape[:2], image[0] + top + bottom, image[1] + left + right)
        check_shape(padded, "the padded bottom")
        return [(*shape[:2], *size)] * self.num_tops

    def forward(self, *bottoms: Tensor) -> Tensor | Sequence[Tensor]:
        bottom = bottoms[0]
        window = self.window(_image(bottom))
        if self.is_max:
            return max_of(bottom, window)
        if self.method == PoolingParameter.MAX:
            top, index = max_pool(bottom, window)
            return top, index.to(top.dtype)
        if self.method in AVERAGES:
            return average_pool(bottom, window, padding=self.method == PoolingParameter.AVE)
        if self.training:
            return stochastic_pool(bottom, window, self.generator())
        return expected_pool(bottom, window)

    @property
    def is_max(self) -> bool:
        """Whether it takes maxima, and nothing else."""
        return self.method == PoolingParameter.MAX and self.num_tops == 1

    def pool_biased(self, bottom: Tensor, bias: Tensor | None, *, relu: bool) -> Tensor:
        """The maxima after a bias for each channel and, if asked for, a ReLU."""
        return max_of(bottom, self.window(_image(bottom)), bias, relu)

    def _ceil(self) -> bool:
        """How to round, by `round_mode` or by the forks' `ceil_mode`."""
        settings = self.param.pooling_param
        if not settings.HasField("ceil_mode"):
            return settings.round_mode == PoolingParameter.CEIL
        if settings.HasField("round_mode"):
            raise self.error(
                "give either round_mode or ceil_mode, not both", "pooling_param.ceil_mode"
            )
        return settings.ceil_mode

    def _pair(self, square: str, prefix: str, least: int) -> Pair:
        """A setting for (height, width): the field `square`, or `prefix`_h and `prefix`_w."""
        settings, place = self.param.pooling_param, f"pooling_param.{square}"
        names = f"{prefix}_h", f"{prefix}_w"
        given = [settings.HasField(name) for name in names]
        if any(given) and (settings.HasField(square) or not all(given)):
            raise self.error(f"give either {square} or both {names[0]} and {names[1]}", place)
        fields = names if any(given) else (square, square)
        height, width = (getattr(settings, name) for name in fields)
        if min(height, width) < least:
            raise self.error(f"must be given and at least {least}", place)
        if max(height, width) > MOST:
            raise self.error(f"must be at most {MOST}", place)
        return height, width

    def _check_global(self) -> None:
        settings = self.param.pooling_param
        for name in ("kernel_size", "kernel_h", "kernel_w"):
            if settings.HasField(name):
                raise self.error("global_pooling takes no kernel size", f"pooling_param.{name}")
        if any(map(any, self._window.pads)) or self._window.stride != (1, 1):
            raise self.error("takes no pad and no stride but 1", "pooling_param.global_pooling")

    def _check_pad(self) -> None:
        if self.method == PoolingParameter.STOCHASTIC:
            raise self.error("STOCHASTIC takes no padding; MAX and AVE do", "pooling_param.pad")
        window = self._window
        if any(pad[axis] >= window.kernel[axis] for pad in window.pads for axis in (0, 1)):
            raise self.error("must be smaller than the kernel", "pooling_param.pad")
