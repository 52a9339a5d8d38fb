"""Gradients averaged in buffers, with sums of ranks that are only imagined."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from caffe_dns.parallel import averaging
from caffe_dns.parallel.averaging import GradientAverage


class Others:
    """Two other ranks, which have the same gradients and more: each adds 6 to every number."""

    def __init__(self) -> None:
        self.started: list[int] = []
        self.waited: list[int] = []

    def start_mean(self, values: Tensor) -> Callable[[], None]:
        number = len(self.started)
        self.started.append(values.numel())

        def wait() -> None:
            values.add_(2 * 6 / 3)
            self.waited.append(number)

        return wait


def parameters(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def gradients(tensors: list[Tensor]) -> list[Tensor]:
    found = []
    for tensor in tensors:
        assert tensor.grad is not None
        found.append(tensor.grad)
    return found


def test_buffers_lie_where_they_are_wanted() -> None:
    tensors, memory = parameters((3, 5), (7,)), torch.zeros(100)
    average = GradientAverage(tensors, Others().start_mean, new=lambda size, *_: memory[:size])
    average.arm()
    sum(tensor.sum() for tensor in tensors).backward()  # type: ignore[union-attr]
    average.finish()
    ends = memory.data_ptr(), memory.data_ptr() + memory.nbytes
    assert all(ends[0] <= gradient.data_ptr() < ends[1] for gradient in gradients(tensors))


def test_gradients_become_their_mean() -> None:
    tensors = parameters((3, 5), (7,), (2, 3, 4, 5))
    tensors[2] = tensors[2].detach().to(memory_format=torch.channels_last).requires_grad_()
    others = Others()
    average = GradientAverage(tensors, others.start_mean)
    for _ in range(2):
        for tensor in tensors:
            tensor.grad = None
        average.arm()
        sum(tensor.square().sum() for tensor in tensors).backward()  # type: ignore[union-attr]
        average.finish()
        for tensor, gradient in zip(tensors, gradients(tensors), strict=True):
            torch.testing.assert_close(gradient, 2 * tensor.detach() + 4)
            assert gradient.stride() == tensor.stride()
            assert gradient.data_ptr() % 128 == gradients(tensors)[0].data_ptr() % 128
    assert len(others.started) == 2
    assert others.waited == [0, 1]


def test_gradients_that_come_rounded_or_laid_out_otherwise_become_their_mean() -> None:
    tensors = parameters((3, 5), (7,), (2, 3, 4, 5), (6, 2))
    average = GradientAverage(tensors, Others().start_mean)
    found = [torch.randn_like(tensor) for tensor in tensors]
    found[2] = found[2].contiguous(memory_format=torch.channels_last)
    for number in (1, 2):
        tensors[number].grad_dtype = None
        found[number] = found[number].bfloat16()
    average.arm()
    for tensor, gradient in zip(tensors[:3], found, strict=False):  # the last has none
        tensor.grad = gradient
    average.finish()
    found[3].zero_()
    for tensor, mean, gradient in zip(tensors, gradients(tensors), found, strict=True):
        assert mean.dtype == torch.float32 and mean.stride() == tensor.stride()
        assert torch.equal(mean, gradient.float() + 4)


def test_only_the_last_pass_counts_as_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "LAST_BYTES", 96)
    tensors = parameters((4, 6), (5,))
    others = Others()
    average = GradientAverage(tensors, others.start_mean)
    for number in range(3):
        if number == 2:
            average.arm()
        assert not others.started
        sum(tensor.square().sum() for tensor in tensors).backward()  # type: ignore[union-attr]
    assert len(others.started) == 2
    average.finish()
    for tensor, gradient in zip(tensors, gradients(tensors), strict=True):
        torch.testing.assert_close(gradient, 6 * tensor.detach() + 4)


def test_gradients_that_are_missing_count_as_zero() -> None:
    """On all ranks alike: the buffers travel in the same order."""
    tensors = parameters((4, 6), (5,), (3,))
    others = Others()
    average = GradientAverage(tensors, others.start_mean)
    average.arm()
    tensors[0].square().sum().backward()
    average.finish()
    torch.testing.assert_close(gradients(tensors)[0], 2 * tensors[0].detach() + 4)
    assert all(bool((gradient == 4).all()) for gradient in gradients(tensors)[1:])
    average.arm()  # and nothing has stayed behind in the buffers
    for tensor in tensors:
        tensor.grad = None
    average.finish()
    assert all(bool((gradient == 4).all()) for gradient in gradients(tensors))


def test_a_parameter_used_twice_arrives_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "LAST_BYTES", 8)
    last, weight = parameters((2,), (4, 4))
    others = Others()
    average = GradientAverage([last, weight], others.start_mean)
    average.arm()
    (weight.sum() + 3 * weight.reshape(2, 8).sum()).backward()
    assert len(others.started) == 1
    average.finish()
    assert bool((gradients([weight])[0] == 4 + 4).all())


def test_buffers_go_while_backward_runs_from_the_last_layer_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(averaging, "BUCKET_BYTES", 4 * 64)
    tensors = parameters((3, 32), (32, 4), (2, 32), (32, 2), (32,), (2,))
    others = Others()
    average = GradientAverage(tensors, others.start_mean)
    seen: list[int] = []
    first, second, third, fourth, bias, last = tensors
    average.arm()
    hidden = torch.ones(1, 3) @ first
    hidden.register_hook(lambda gradient: seen.append(len(others.started)))
    out = hidden @ second.repeat(1, 8) + bias
    ((out @ fourth) @ third[:, :2] + last).sum().backward()
    average.finish()
    # Padded to multiples of 32: `last` with `bias`, then one buffer for each of the others.
    assert others.started == [64, 64, 64, 128, 96]
    assert others.waited == [0, 1, 2, 3, 4]
    assert seen == [4]  # all but the first layer's


def test_what_comes_last_is_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "LAST_BYTES", 4 * 20)
    first, second, third, fourth = tensors = parameters((3, 4), (8,), (5, 5), (2, 6))
    average = GradientAverage(tensors, Others().start_mean)
    assert [[*map(id, group)] for group in average.groups] == [
        [id(fourth), id(third)],
        [id(second), id(first)],
    ]
    for together in ([third], [first, second]):
        (group,) = GradientAverage(together, Others().start_mean).groups
        assert len(group) == len(together)


def test_a_pass_that_broke_off_is_forgotten() -> None:
    tensors = parameters((4, 6), (5,))
    others = Others()
    average = GradientAverage(tensors, others.start_mean)
    average.arm()
    tensors[1].sum().backward()
    average.reset()
    for tensor in tensors:
        tensor.grad = None
    average.arm()
    sum(tensor.square().sum() for tensor in tensors).backward()  # type: ignore[union-attr]
    average.finish()
    for tensor, gradient in zip(tensors, gradients(tensors), strict=True):
        torch.testing.assert_close(gradient, 2 * tensor.detach() + 4)


def test_nothing_to_average() -> None:
    average = GradientAverage([], Others().start_mean)
    average.arm()
    average.finish()


def test_a_large_gradient_travels_from_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "LARGE_BYTES", 4 * 60)
    tensors = parameters((5,), (3, 20), (7,), (2, 3, 4, 5), (3,))
    tensors[3] = tensors[3].detach().to(memory_format=torch.channels_last).requires_grad_()
    others = Others()
    average = GradientAverage(tensors, others.start_mean, movable=tensors)
    average.arm()
    sum(tensor.square().sum() for tensor in tensors).backward()  # type: ignore[union-attr]
    average.finish()
    # The small ones go together, as soon as the last of them is there.
    assert others.started == [120, 60, 96]
    for tensor, gradient in zip(tensors, gradients(tensors), strict=True):
        torch.testing.assert_close(gradient, 2 * tensor.detach() + 4)
        assert gradient.stride() == tensor.stride()
    for tensor in tensors:
        tensor.grad = None
    average.arm()
    average.finish()
    assert all(bool((gradient == 4).all()) for gradient in gradients(tensors))


def test_a_gradient_that_others_hold_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parameter's gradient is a view of the one that goes on to the layers below."""
    monkeypatch.setattr(averaging, "LARGE_BYTES", 4)
    below, added = parameters((3, 4), (12,))

    def at_once(values: Tensor) -> Callable[[], None]:
        values.add_(4)
        return lambda: None

    average = GradientAverage([below, added], at_once)
    average.arm()
    (below.exp() + added.view(3, 4)).square().sum().backward()
    average.finish()
    total = below.detach().exp() + added.detach().view(3, 4)
    wanted = [2 * total * below.detach().exp() + 4, (2 * total).view(12) + 4]
    for gradient, value in zip(gradients([below, added]), wanted, strict=True):
        torch.testing.assert_close(gradient, value)
