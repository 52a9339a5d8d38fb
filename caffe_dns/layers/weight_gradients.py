"""Deferred weight gradients: those that autograd's backward pass does not wait for.

Nothing in backward depends on the gradient of a weight. In a small net no kernel fills a GPU, so
what runs on a second stream takes no extra time. Autograd orders its work on one stream; therefore
these gradients do not go through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device.memory_format import laid_out_as

#: Products in a layer's forward pass above which its kernels fill a GPU by themselves.
LARGE = 1_000_000_000
#: The most numbers in a window for which a convolution's weights are a matter of small matrices.
FEW = 64
#: The most outputs of an inner product that are few.
FEW_OUTPUTS = 32


#: Something to do later, if anything.
Then = Callable[[], None] | None


class Product(Protocol):
    """A layer's arithmetic: the top from bottom x, weight w and bias b, and gradients."""

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor: ...

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor: ...

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Linear:
    """x @ w^T, or x @ w where `transpose` says so."""

    transpose: bool

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(x, w.t() if self.transpose else w, b)

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self.below(gradient, w)

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self.along(gradient, x)

    def below(self, gradient: Tensor, w: Tensor) -> Tensor:
        """The gradient of x."""
        return gradient @ (w.t() if self.transpose else w)

    def along(self, gradient: Tensor, x: Tensor) -> Tensor:
        """The gradient of w."""
        rows, columns = gradient.flatten(0, -2), x.flatten(0, -2)
        return columns.t() @ rows if self.transpose else rows.t() @ columns


@dataclass(frozen=True)
class FewOutputs(Linear):
    """x @ w^T with few outputs, by kernels of our own."""

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        if not self._suit(x, w):
            return super().top(x, w, b)
        from caffe_dns.kernels import narrow

        return narrow.top(x, w, b)

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        if not self._suit(gradient, x, w):
            return super().bottom_gradient(gradient, x, w)
        from caffe_dns.kernels import narrow

        return narrow.bottom_gradient(gradient, w)

    def _suit(self, *matrices: Tensor) -> bool:
        if self.transpose or not kernels.wanted(matrices[0].device):
            return False
        from caffe_dns.kernels import narrow

        return narrow.fits(*matrices)


@dataclass(frozen=True)
class Convolved:
    """A convolution over any number of spatial axes."""

    stride: Sequence[int]
    pad: Sequence[int]
    dilation: Sequence[int]
    group: int

    def has_own_gradients(self, x: Tensor) -> bool:
        """Whether it is to be asked for its gradients instead of autograd."""
        return False

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        axes = len(self.pad)
        top = torch.convolution(
            x, w, None, self.stride, self.pad, self.dilation, False, [0] * axes, self.group
        )
        return top if b is None else top.add_(b.view(-1, *[1] * axes))

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return self._backward(gradient, x, w, (True, False, False))[0]

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        few = w[0].numel() <= FEW and w.dim() == 4 and self.group == 1 and set(self.dilation) == {1}
        if not few:
            return self._backward(gradient, x, w, (False, True, False))[1]
        # As products of matrices, an image at a time: cuDNN is slow where channels are few.
        (pad_h, pad_w), num = self.pad, len(x)
        windows = F.pad(x, (pad_w, pad_w, pad_h, pad_h)) if any(self.pad) else x
        for axis in (2, 3):
            windows = windows.unfold(axis, w.shape[axis], self.stride[axis - 2])
        columns = windows.permute(0, 2, 3, 1, 4, 5).reshape(num, -1, w[0].numel())
        rows = gradient.permute(0, 2, 3, 1).reshape(num, -1, len(w))
        return torch.bmm(rows.transpose(1, 2), columns).sum(0).view(w.shape)

    def gradients(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: Sequence[bool]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Those of x and w that are wanted, from that of the top."""
        below, along, _ = self._backward(gradient, x, w, (wanted[0], wanted[1], False))
        return below, along

    def _backward(
        self, gradient: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, Tensor, Tensor]:
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            gradient,
            x,
            w,
            None,
            self.stride,
            self.pad,
            self.dilation,
            False,
            [0] * len(self.pad),
            self.group,
            wanted,
        )
        return result


@dataclass(frozen=True)
class FewChannels(Convolved):
    """A convolution of few channels without a stride, with kernels of our own for its gradients."""

    def bottom_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        if not suit(gradient, x, w):
            return super().bottom_gradient(gradient, x, w)
        from caffe_dns.kernels import convolution

        pad_h, pad_w = self.pad
        return convolution.bottom_gradient(gradient, x, w, (pad_h, pad_w))

    def weight_gradient(self, gradient: Tensor, x: Tensor, w: Tensor) -> Tensor:
        if not suit(gradient, x, w):
            return super().weight_gradient(gradient, x, w)
        from caffe_dns.kernels import convolution

        pad_h, pad_w = self.pad
        return convolution.parameter_gradients(gradient, x, w, (pad_h, pad_w))[0]


class DeferredWeightGradients(ABC):
    """Who computes gradients of weights instead of autograd.

    They are collected with `join` after each backward pass.
    """

    #: Whether gradients of biases are computed as well.
    with_biases: ClassVar[bool]

    def __init__(self) -> None:
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._is_last = False

    def arm(self) -> None:
        """The next backward pass is the last before the update."""
        self._is_last = True

    @abstractmethod
    def takes(self, weight: Tensor, work: int) -> bool:
        """Whether it wants a weight that takes part in so many products in a forward pass."""

    @abstractmethod
    def compute(self, product: Product, weight: Tensor, *inputs: Tensor) -> Then:
        """Begin with the gradient of `weight` from (gradient of the top, x, w).

        Returns what there is to do when backward reads the layer's weight no more, if anything.
        """

    def add_up(self, bias: Tensor, gradient: Tensor, axis: int) -> None:
        """The gradient of a bias from that of the top, whose axis it was added along."""
        raise NotImplementedError

    def join(self) -> None:
        """Finish, and hand the gradients to their parameters."""
        for parameter, gradient in self._gradients:
            before = parameter.grad
            parameter.grad = gradient if before is None else before + gradient
        self._gradients.clear()

    def drop(self) -> None:
        """Forget what there is: the iteration's passes are over, or one did not come to its end."""
        self._gradients.clear()
        self._is_last = False

    def _bring(self, product: Product, weight: Tensor, *inputs: Tensor) -> None:
        """Compute the gradient of a weight, in its layout, for `join`."""
        gradient = product.weight_gradient(*inputs)
        self._gradients.append((weight, laid_out_as(weight, gradient)))


class SecondStream(DeferredWeightGradients):
    """Computes gradients on a stream of its own, of layers that do not fill a GPU by themselves."""

    with_biases = True

    def __init__(self) -> None:
        super().__init__()
        self._stream = torch.cuda.Stream()
        #: What the stream still reads.
        self._kept: list[Tensor] = []

    def takes(self, weight: Tensor, work: int) -> bool:
        return work < LARGE

    def compute(self, product: Product, weight: Tensor, *inputs: Tensor) -> Then:
        with self._after(*inputs):
            self._bring(product, weight, *inputs)
        return None

    def compute_all(
        self,
        parameters: Sequence[Tensor | None],
        gradients: Callable[[], Sequence[Tensor]],
        *inputs: Tensor,
    ) -> None:
        """Begin with the gradients of those parameters that learn, all from the same inputs."""
        with self._after(*inputs):
            for parameter, gradient in zip(parameters, gradients(), strict=True):
                if parameter is not None and parameter.requires_grad:
                    self._gradients.append((parameter, laid_out_as(parameter, gradient)))

    def add_up(self, bias: Tensor, gradient: Tensor, axis: int) -> None:
        others = [other for other in range(gradient.dim()) if other != axis]
        with self._after(gradient):
            total = gradient.sum(others).to(bias.dtype)
        self._gradients.append((bias, total))

    def join(self) -> None:
        if self._gradients:
            self._wait()
        super().join()
        self._kept.clear()

    def drop(self) -> None:
        super().drop()
        self._kept.clear()

    def _wait(self) -> None:
        torch.cuda.current_stream().wait_stream(self._stream)

    def _after(self, *inputs: Tensor) -> AbstractContextManager[object]:
        """The stream, going on where the current one is now."""
        self._kept += inputs
        self._stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._stream)


class Produced(torch.autograd.Function):
    """The top of a convolution, before a bias is added, by a product of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, product: Convolved) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.product = product
        return product.top(x, w, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        below, along = ctx.product.gradients(gradients[0], x, w, ctx.needs_input_grad[:2])
        return below, along, None


class DeferredProduct(torch.autograd.Function):
    """The top of a layer whose gradients of weight and bias are deferred.

    `weight` and `bias` are the parameters, which learn; `w` and `b` what the layer makes of them.
    The bias is added along `axis`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        w: Tensor,
        b: Tensor | None,
        axis: int,
        product: Product,
        deferred: DeferredWeightGradients,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.parameters, ctx.axis, ctx.product, ctx.deferred = (
            (weight, bias),
            axis,
            product,
            deferred,
        )
        return product.top(x, w, b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, w) = gradients, ctx.saved_tensors
        weight, bias = ctx.parameters
        then: Then = None
        if weight.requires_grad:
            then = ctx.deferred.compute(ctx.product, weight, gradient, x, w)
        if bias is not None and bias.requires_grad:
            ctx.deferred.add_up(bias, gradient, ctx.axis)
        wanted = ctx.needs_input_grad[0]
        below = ctx.product.bottom_gradient(gradient, x, w) if wanted else None
        if then is not None:
            then()
        return below, *[None] * 7


def suit(*blobs: Tensor) -> bool:
    """Whether kernels of our own are to run on these images and weights of a convolution."""
    if not kernels.wanted(blobs[0].device):
        return False
    from caffe_dns.kernels import convolution

    return convolution.fits(*blobs)
