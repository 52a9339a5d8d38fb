"""Checks that numbers from files are finite: one that is not spoils everything computed with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from caffe_dns.errors import CaffeError


def check_finite(values: np.ndarray[Any, np.dtype[Any]], what: str) -> None:
    """Raise CaffeError with the first place where `values` are not finite."""
    if not values.size:
        return
    # What is not finite shows in one of the two; to ask every value takes a quarter of the memory.
    with np.errstate(invalid="ignore"):
        extremes = values.min(), values.max()
    if not np.isfinite(extremes).all():
        finite = np.isfinite(values)
        place = np.unravel_index(int(np.argmin(finite)), values.shape)
        where = ", ".join(map(str, place))
        raise CaffeError(f"{what} holds {values[place]:g} at [{where}]; it must be finite")
