"""The cross entropy of a softmax and its gradient, in one kernel.

PyTorch needs about ten for it, each of which waits for the one before.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

#: How many numbers one program of the kernel handles: all of a small net's, so that it adds up all.
TILE = 4096


@triton.jit
def _loss(
    scores,
    labels,
    sums,
    gradients,
    rows,
    classes,
    scale,
    most,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The sum of the scaled losses of some rows, and their gradients; NaN for no class's label."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < classes)
    values = tl.load(scores + row * classes + column, mask=inside, other=-float("inf"))
    # Rows beyond the last have no largest value.
    values = tl.where(row < rows, values.to(tl.float32), 0.0)
    label = tl.load(labels + row, mask=row < rows, other=0).to(tl.int32)
    values -= tl.max(values, 1)[:, None]
    powers = tl.exp(values)
    total = tl.sum(powers, 1)[:, None]
    own = tl.sum(tl.where(column == label, values, 0.0), 1)[:, None]
    loss = tl.minimum(tl.log(total) - own, most)
    known = (label >= 0) & (label < classes)
    loss = tl.where(known, loss * scale, float("nan"))
    tl.store(sums + tl.program_id(0), tl.sum(tl.where(row < rows, loss, 0.0)))
    gradient = powers / total - tl.where(column == label, 1.0, 0.0)
    gradient = tl.where(known, gradient * scale, float("nan"))
    tl.store(gradients + row * classes + column, gradient, mask=inside)


class SoftmaxLoss(torch.autograd.Function):
    """The sum over rows of -log softmax(scores)[label], each at most `most`, times `scale`.

    `scores` is (N, C), `labels` has N elements, numbers cut to integers. The clamp is Caffe's: the
    gradient is that without it.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, labels: Tensor, scale: float, most: float) -> Tensor:
        scores = scores.contiguous()
        rows, classes = scores.shape
        block = max(16, triton.next_power_of_2(classes))
        height = min(max(1, TILE // block), triton.next_power_of_2(rows))
        sums = torch.empty(triton.cdiv(rows, height), dtype=torch.float32, device=scores.device)
        gradients = torch.empty_like(scores)
        _loss[(len(sums),)](
            scores,
            labels.contiguous(),
            sums,
            gradients,
            rows,
            classes,
            scale,
            most,
            ROWS=height,
            BLOCK=block,
        )
        ctx.save_for_backward(gradients)
        return sums[0] if len(sums) == 1 else sums.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (saved,) = ctx.saved_tensors
        return saved * gradients[0], None, None, None
