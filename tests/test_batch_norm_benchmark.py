"""The benchmark of BatchNorm on a CPU: both sides normalise the same, one by exact statistics."""

from __future__ import annotations

import torch

from tools.benchmarks import batch_norm_cpu


def test_both_sides_normalise_the_same() -> None:
    values = torch.randn(16, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    for mine, other in zip(batch_norm_cpu.dns(values), batch_norm_cpu.pytorch(values), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert batch_norm_cpu.error(values, batch_norm_cpu.dns) < 1e-6


def test_a_row_has_times_ratios_and_errors() -> None:
    cells = batch_norm_cpu.row((2, 3, 20, 20), rounds=1).strip("| ").split(" | ")
    assert len(cells) == 7
    assert cells[0] == "2x3x20x20"
    assert all(float(cell.split(" (")[0]) >= 0 for cell in cells[1:])
