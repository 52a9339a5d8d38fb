"""Deferred weight gradients: those that autograd's backward pass does not wait for.

Nothing in backward depends on the gradient of a weight. In a small net no kernel fills a GPU, so
what runs on a second stream takes no extra time. Autograd orders its work on one stream; therefore
these gradients do not go through it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor

from caffe_dns.device.memory_format import laid_out_as
from caffe_dns.layers.products import Product

#: Layers with more multiplications per pass fill a GPU by themselves.
LARGE = 1_000_000_000


#: Something to do later, if anything.
Then = Callable[[], None] | None


class DeferredWeightGradients(ABC):
    """Computes gradients of weights instead of autograd.

    `join` collects them after each backward pass.
    """

    #: Whether gradients of biases are computed as well.
    with_biases: ClassVar[bool]

    def __init__(self) -> None:
        self._gradients: list[tuple[Tensor, Tensor]] = []
        self._is_last = False

    def arm(self) -> None:
        """Note that the next backward pass is the last before the update."""
        self._is_last = True

    @abstractmethod
    def takes(self, weight: Tensor, work: int) -> bool:
        """Whether it takes the gradient of a weight with `work` multiplications per pass."""

    @abstractmethod
    def compute(self, product: Product, weight: Tensor, *inputs: Tensor) -> Then:
        """Start on the gradient of `weight` from (gradient of the top, x, w).

        Returns what to do once backward no longer reads the layer's weight, if anything.
        """

    def add_up(self, bias: Tensor, gradient: Tensor, axis: int) -> None:
        """Compute the gradient of a bias, added along `axis`, from that of the top."""
        raise NotImplementedError

    def join(self) -> None:
        """Finish, and add the gradients to their parameters' `grad`."""
        for parameter, gradient in self._gradients:
            before = parameter.grad
            parameter.grad = gradient if before is None else before + gradient
        self._gradients.clear()

    def drop(self) -> None:
        """Drop all gradients: the iteration's passes are over, or one was not completed."""
        self._gradients.clear()
        self._is_last = False

    def _bring(self, product: Product, weight: Tensor, *inputs: Tensor) -> None:
        """Compute the gradient of a weight, in the weight's layout, for `join`."""
        gradient = product.weight_gradient(*inputs)
        self._gradients.append((weight, laid_out_as(weight, gradient)))


class SecondStream(DeferredWeightGradients):
    """Computes gradients on a second stream, for layers that do not fill a GPU by themselves."""

    with_biases = True

    def __init__(self) -> None:
        super().__init__()
        self._stream = torch.cuda.Stream()
        #: Tensors that the stream still reads.
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
        """Start on the gradients of the parameters that learn, all from the same inputs."""
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
        """The stream as a context, ordered after the current one."""
        self._kept += inputs
        self._stream.wait_stream(torch.cuda.current_stream())
        return torch.cuda.stream(self._stream)


class DeferredProduct(torch.autograd.Function):
    """The top of a layer with deferred gradients of weight and bias.

    `weight` and `bias` are the parameters, which learn; `w` and `b` are what the layer makes of
    them, such as masked ones. The bias is added along `axis`.
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
