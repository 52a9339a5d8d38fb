"""How the elements of tensors lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def laid_out_as(model: Tensor, values: Tensor) -> Tensor:
    """`values` in the model's type, and in memory in the order of the model's elements."""
    if values.stride() == model.stride() and values.dtype == model.dtype:
        return values
    return torch.empty_like(model).copy_(values)
