"""Numbers are the same on the host, whatever their types."""

from __future__ import annotations

import torch

from caffe_dns.device.fetching import on_host


def test_the_same_numbers() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = [
        torch.tensor([1.5, float("nan")], dtype=torch.bfloat16, device=device),
        torch.tensor(2**53, device=device),
        torch.tensor([[0.1]], requires_grad=True).to(device),
        torch.empty(0, 2, device=device),
    ]
    found = on_host(given)
    assert not any(each.is_cuda or each.requires_grad for each in found)
    for each, wanted in zip(found, given, strict=True):
        torch.testing.assert_close(
            each, wanted.detach().double().cpu(), rtol=0, atol=0, equal_nan=True
        )


def test_nothing_is_nothing() -> None:
    assert on_host([]) == []
