"""Mask rules and schedules of dynamic network surgery, as functions of tensors and numbers.

There are two kinds: by standard deviation (HolmesShuan's fork, `conv_layer.cu`,
`inner_product_layer.cu`) and by magnitude with hysteresis (yiwenguo's fork,
`compress_conv_layer.cpp`). Where the number of parameters to keep is given instead of a threshold,
the thresholds follow from it. Nothing here knows layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from caffe_dns import rng
from caffe_dns.lr_policy import power as power_of

#: A kept parameter is pruned at or below the first multiple of the threshold, a pruned one spliced
#: back above the second.
PRUNE_BELOW, SPLICE_ABOVE = 0.9, 1.1


class _MaskedWeight(torch.autograd.Function):
    """Multiplies by the mask; passes the gradient on unmasked, so that pruned weights learn."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, mask: Tensor, dtype: torch.dtype) -> Tensor:
        # Into a tensor with the weight's strides: for one input channel a plain product would lose
        # the memory format, and the convolution after it would be slower.
        return torch.mul(weight, mask, out=torch.empty_like(weight, dtype=dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None  # in the type that the weight's gradient has, by autograd


def masked(weight: Tensor, mask: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """`weight * mask` whose gradient reaches all of `weight` (straight through the mask).

    The product is rounded to `dtype` in the same pass, if given. A program of torch.export has the
    plain product, because its masks are never renewed.
    """
    if torch.compiler.is_exporting():
        return (weight * mask).to(dtype or weight.dtype)
    result: Tensor = _MaskedWeight.apply(weight, mask, dtype or weight.dtype)
    return result


class _Stand(torch.autograd.Function):
    """A product in place of its parameter, which receives the gradient."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, product: Tensor) -> Tensor:
        return product.view_as(product)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def stand_in(parameter: Tensor, product: Tensor) -> Tensor:
    """A product without a gradient in place of its parameter, as if made by `masked`."""
    result: Tensor = _Stand.apply(parameter, product)
    return result


@torch.no_grad()
def all_masked(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> Sequence[Tensor]:
    """The product of each weight and its mask, in one kernel on a GPU; without a gradient."""
    products: Sequence[Tensor] = torch._foreach_mul(list(weights), list(masks))
    return products


def deviation_mask(weight: Tensor, threshold: float) -> Tensor:
    """0 where `weight` lies strictly within `threshold` standard deviations of its mean, else 1.

    Mean and population standard deviation are taken over all of `weight`, pruned entries too.
    """
    # In few passes over memory: a loss function that subtracts and squares in one pass, and an
    # in-place comparison, which gives 0 and 1 as floats, much faster than through booleans.
    squares = mse_loss(weight, weight.mean().expand_as(weight), reduction="none")
    return squares.ge_(threshold * abs(threshold) * squares.mean())


def magnitude_moments(parameters: Sequence[Tensor]) -> Tensor:
    """[mu, sigma]: mean and standard deviation of |p| over the nonzero entries of all `parameters`.

    Both are 0 when every entry is zero.
    """
    flat = torch.cat([parameter.reshape(-1) for parameter in parameters])
    count = (flat != 0).sum().clamp(min=1)
    mu = flat.abs().sum() / count
    variance = flat.square().sum() / count - mu * mu
    return torch.stack([mu, variance.clamp(min=0).sqrt()])


def hysteresis_mask(parameter: Tensor, mask: Tensor, moments: Tensor, c_rate: float) -> Tensor:
    """The next mask: kept entries at or below 0.9 t are pruned, pruned ones above 1.1 t come back.

    t = max(mu + c_rate * sigma, 0); entries in between keep their state.
    """
    threshold = (moments[0] + c_rate * moments[1]).clamp(min=0)
    splice = SPLICE_ABOVE * threshold
    limit = (mask * (PRUNE_BELOW * threshold - splice)).add_(splice)
    return parameter.abs().gt_(limit)


def strength(distance: Tensor, mask: Tensor) -> Tensor:
    """The threshold up to which each parameter is kept, or spliced back, with hysteresis.

    `distance` is what the rule compares with the threshold: the magnitude, or the distance from the
    mean; none is negative.
    """
    return distance * (1 / SPLICE_ABOVE + mask * (1 / PRUNE_BELOW - 1 / SPLICE_ABOVE))


def relative_strength(descending: Tensor) -> Tensor:
    """A layer's strengths, sorted in descending order, as scores comparable across layers.

    The score is the square over the sum of the squares that are no smaller: 1 for the largest, so
    that no layer is emptied as long as there is one parameter for each (layer-adaptive magnitude,
    Lee et al., ICLR 2021).
    """
    squares = descending.clamp(min=0).square()
    return squares / squares.cumsum(0).clamp(min=torch.finfo(squares.dtype).tiny)


def distance_by_loss(parameter: Tensor, squares: Tensor) -> Tensor:
    """The root of twice the expected rise of the loss without each parameter.

    The rise is w^2 F / 2, with the mean square F of the gradient in place of the second derivative
    (optimal brain damage, LeCun et al., 1989, with the diagonal of the empirical Fisher matrix).
    """
    return parameter.abs() * squares.sqrt()


def strength_per_cost(relative: Tensor, cost: int) -> Tensor:
    """Relative strengths (see `relative_strength`) divided by the cost of each.

    Keeping the most within a budget is a knapsack problem, filled by value per cost (Dantzig,
    1957). With a small budget, that would empty a layer of high costs; its strongest comes first.
    """
    shares = relative / cost
    shares[:1] = math.inf
    return shares


def kept_at(progress: float, start: int, end: int, steepness: float) -> int:
    """How many parameters (or multiplications) to keep on the way from `start` to `end`.

    The distance from `end` falls as `(1 - progress) ^ steepness` (Zhu and Gupta, 2017, with
    steepness 3); progress is between 0 and 1.
    """
    return round(end + (start - end) * (1 - progress) ** steepness)


def replace(mask: Tensor, renewed: Tensor) -> Tensor:
    """Overwrite a mask; returns how many entries were spliced back, as a 0-dim int64 tensor."""
    came_back = mask.lt_(renewed).sum().long()
    mask.copy_(renewed)
    return came_back


def probability(iteration: int, gamma: float, power: float) -> float:
    """The probability of surgery at this iteration, `(1 + gamma * iteration) ^ -power`."""
    return power_of(1.0 + gamma * iteration, -power)


def happens(
    seed: int,
    stream: str,
    iteration: int,
    *,
    gamma: float,
    power: float,
    draws: int = 1,
    since: int = 0,
) -> bool:
    """Whether one of `draws` numbers from [0, 1) falls below the probability at this iteration.

    The probability counts from iteration `since`. The draws depend only on the seed, the
    stream's name and the iteration: they are the same on all ranks and in every resumed run.
    """
    chance = probability(iteration - since, gamma, power)
    return any(
        rng.uniform(seed, f"surgery/{stream}/{draw}", iteration) < chance for draw in range(draws)
    )
