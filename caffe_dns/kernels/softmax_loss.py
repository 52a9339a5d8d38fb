"""The cross entropy of a softmax and its gradient, in one kernel.

PyTorch needs about ten for it, each of them waiting for the one before.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _row_loss(
    scores,
    labels,
    losses,
    gradients,
    classes,
    scale,
    most,
    BLOCK: tl.constexpr,
):
    """The scaled loss of one row, and its gradient; NaN for a label that is no class."""
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    inside = places < classes
    values = tl.load(scores + row * classes + places, mask=inside, other=-float("inf"))
    values = values.to(tl.float32)
    label = tl.load(labels + row).to(tl.int32)
    values -= tl.max(values, 0)
    powers = tl.exp(values)
    total = tl.sum(powers, 0)
    own = tl.sum(tl.where(places == label, values, 0.0), 0)
    loss = tl.minimum(tl.log(total) - own, most)
    known = (label >= 0) & (label < classes)
    tl.store(losses + row, tl.where(known, loss * scale, float("nan")))
    gradient = powers / total - tl.where(places == label, 1.0, 0.0)
    gradient = tl.where(known, gradient * scale, float("nan"))
    tl.store(gradients + row * classes + places, gradient, mask=inside)


class SoftmaxLoss(torch.autograd.Function):
    """The sum over rows of -log softmax(scores)[label], each at most `most`, times `scale`.

    `scores` is (N, C), `labels` has N elements, numbers cut to integers. The clamp is Caffe's: the
    gradient is that without it.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, scale: float, most: float) -> Tensor:
        scores = scores.contiguous()
        rows, classes = scores.shape
        losses = torch.empty(rows, dtype=torch.float32, device=scores.device)
        gradients = torch.empty_like(scores)
        _row_loss[(rows,)](
            scores,
            labels.contiguous(),
            losses,
            gradients,
            classes,
            scale,
            most,
            BLOCK=max(16, triton.next_power_of_2(classes)),
        )
        ctx.save_for_backward(gradients)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradients[0], None, None, None
