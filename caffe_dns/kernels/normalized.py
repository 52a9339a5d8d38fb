"""BatchNorm and the operations fused with it as autograd functions; the kernels are elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from caffe_dns.kernels.batch_norm import Normalization
from caffe_dns.kernels.channel_statistics import Statistics, Sums, measured
from caffe_dns.kernels.depthwise import Depthwise
from caffe_dns.kernels.layout import laid_out
from caffe_dns.kernels.postponed import Postponed


class NormalizedBatch(torch.autograd.Function):
    """relu((x - mean) / sqrt(variance + eps) * factor + shift), in x's type and memory format.

    `x` is N x C x spatial axes, float32 or bfloat16; factor and shift are float32, C numbers each,
    or both None. `bias` stands for a bias that was to be added to x before: it moves nothing but
    the mean in the statistics, and its gradient is 0. `sums` are given where x has been added up.
    Where it is `postponed`, the result is x as it stands, with the gradient of what it will be.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        relu: bool,
        sums: Sums | None = None,
        postponed: Postponed | None = None,
    ) -> Tensor:
        x = laid_out(x)
        mean, inverse_std = measured(x, sums, bias, statistics, eps)
        ctx.save_for_backward(x, mean, inverse_std, factor, shift)
        ctx.relu, ctx.postponed = relu, postponed
        ctx.bias_type = None if bias is None else bias.dtype
        done = Normalization(x, mean, inverse_std, factor, shift, relu)
        if postponed is None:
            return done.top()
        postponed.normalization = done
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, inverse_std, factor, shift = ctx.saved_tensors
        done = Normalization(x, mean, inverse_std, factor, shift, ctx.relu)
        gradient = laid_out(gradients[0], like=x)
        along = ctx.postponed.take_gradients(gradient) if ctx.postponed is not None else None
        bias = None
        if ctx.needs_input_grad[3]:
            make = torch.empty_like if along is None else torch.zeros_like
            bias = make(mean, dtype=ctx.bias_type)
        result, along_factor, along_shift, _ = done.gradients(gradient, along=along, zeros=bias)
        return result, along_factor, along_shift, bias, *[None] * 5


def added_up(
    gradients: Sequence[Tensor | None], like: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of copies, laid out like another blob: one, and the sum of all others; or None."""
    given = [laid_out(gradient, like) for gradient in gradients if gradient is not None]
    if not given:
        return None, None
    first, *others = given
    return first, sum(others[1:], others[0]) if others else None


class NormalizedSum(torch.autograd.Function):
    """relu((x - mean) / sqrt(variance + eps) * factor + shift + addend), `copies` times.

    As `NormalizedBatch`, with an addend of x's shape and type. Each of the copies, which share
    their memory, has a gradient of its own; they are added up in the pass that reads them.
    An addend whose own normalisation has been `postponed` is normalised as it is added.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        addend: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        copies: int,
        sums: Sums | None = None,
        postponed: Normalization | None = None,
    ) -> tuple[Tensor, ...]:
        x = laid_out(x)
        mean, inverse_std = measured(x, sums, bias, statistics, eps)
        done = Normalization(x, mean, inverse_std, factor, shift, relu=True)
        top, signs = done.top_and_signs(laid_out(addend, like=x), postponed)
        ctx.save_for_backward(x, mean, inverse_std, factor, shift, signs)
        ctx.set_materialize_grads(False)
        return top, *(top.view_as(top) for _ in range(copies - 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, mean, inverse_std, factor, shift, signs = ctx.saved_tensors
        first, more = added_up(gradients, x)
        if first is None:
            return (None,) * 10
        done = Normalization(x, mean, inverse_std, factor, shift, relu=True)
        bias = torch.empty_like(mean) if ctx.needs_input_grad[4] else None
        result, along_factor, along_shift, passed = done.gradients(first, more, signs, zeros=bias)
        return result, passed, along_factor, along_shift, bias, *[None] * 5


class NormalizedConvolution(torch.autograd.Function):
    """`NormalizedBatch` of a convolution of each channel by itself; see `Depthwise`.

    `x` stands for what becomes of it by the normalisation that was `left` by who has `postponed`
    it, and gets the gradient of that.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        factor: Tensor | None,
        shift: Tensor | None,
        bias: Tensor | None,
        statistics: Statistics,
        eps: float,
        relu: bool,
        stride: int,
        left: Normalization,
        postponed: Postponed,
    ) -> Tensor:
        y, sums = Depthwise(left, weight, stride).top()
        mean, inverse_std = measured(y, sums, bias, statistics, eps)
        ctx.save_for_backward(*left.tensors, weight, y, mean, inverse_std, factor, shift)
        ctx.left_relu, ctx.relu, ctx.stride, ctx.postponed = left.relu, relu, stride, postponed
        return Normalization(y, mean, inverse_std, factor, shift, relu).top()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *bottom, weight, y, mean, inverse_std, factor, shift = ctx.saved_tensors
        x, below_mean, below_std, below_factor, below_shift = bottom
        left = Normalization(x, below_mean, below_std, below_factor, below_shift, ctx.left_relu)
        top = Normalization(y, mean, inverse_std, factor, shift, ctx.relu)
        gradient = laid_out(gradients[0], like=top.x)
        bias = torch.empty_like(mean) if ctx.needs_input_grad[4] else None
        along_shift, along_factor = along = top.parameter_gradients(gradient, zeros=bias)
        below, of_weight, *added_up = Depthwise(left, weight, ctx.stride).gradients(
            top, gradient, along
        )
        if ctx.needs_input_grad[0]:
            ctx.postponed.leave_gradients(below, (added_up[0], added_up[1]))
        shared = (None, None) if factor is None else (along_factor, along_shift)
        return below, of_weight, *shared, bias, *[None] * 6
