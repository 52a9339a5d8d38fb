"""Copies values from the device for observers, while the device goes on working."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def on_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies of tensors on one device, on the host, as float64. Waits for the device once.

    All conversions are queued on the device before the host waits.
    """
    if not tensors:
        return []
    flat = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
