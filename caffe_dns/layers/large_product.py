"""Inner products with large matrices, by what a layer makes of its weight: masked or rounded.

PyTorch makes the gradients of bottom and weight in one step, and what the layer has made of its
weight is kept until both are there. Here the bottom's comes first, and that memory is free again
for the weight's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from caffe_dns.layers.products import Linear

#: Weights of at least this size are large.
LARGE = 1 << 24


def is_wanted(weight: Tensor) -> bool:
    """Whether the weight is large, and is not the parameter itself."""
    return weight.numel() >= LARGE and weight.requires_grad and not weight.is_leaf


def top(x: Tensor, weight: Tensor, bias: Tensor | None, product: Linear) -> Tensor:
    """`product`'s top of x, `num x ... x inputs`."""
    shape = (*x.shape[:-1], weight.shape[1 if product.transpose else 0])
    later = _WeightGradient.apply(weight, x, product, shape)
    result: Tensor = _Top.apply(x, bias, later, weight, product)
    return result


class _WeightGradient(torch.autograd.Function):
    """A tensor without memory, in the top's shape, whose gradient becomes the weight's."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, x: Tensor, product: Linear, shape: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.product = product
        return x.new_empty(()).expand(shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return ctx.product.along(gradients[0], x), None, None, None


class _Top(torch.autograd.Function):
    """The top; its gradient goes to x and the bias first, and then to the weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, later: Tensor, weight: Tensor, product: Linear
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.product = product
        return product.top(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        wants_bottom, wants_bias = ctx.needs_input_grad[:2]
        below = ctx.product.below(gradient, weight) if wants_bottom else None
        bias = gradient.flatten(0, -2).sum(0) if wants_bias else None
        return below, bias, gradient, None, None
