"""Gradient descent with momentum, and Nesterov's variant."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device.memory_format import laid_out_as
from caffe_dns.errors import CaffeError
from caffe_dns.net.params import Param
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.solver.update_rules.base import (
    Tensors,
    UpdateRule,
    pick,
    regularize,
    solver_types,
)

if TYPE_CHECKING:
    from caffe_dns.kernels.sgd import SGDKernel


#: What a layer's own rate does to the solver's: it is its factor, or its limit.
LARC_POLICIES = ("scale", "clip")
#: The rate from which 1 - (1 - rate), in float64, is as exact as float32 for every lr_mult in use.
LEAST_FUSED_RATE = 1e-8


@solver_types.register("SGD")
class SGD(UpdateRule):
    """h = momentum * h + rate * g; the rate is inside the history (`sgd_solver.cpp`)."""

    tracks_frozen = False
    nesterov = False
    _kernel: SGDKernel | None = None

    def _check_larc(self, param: SolverParameter) -> None:
        if self.nesterov:
            super()._check_larc(param)
        if param.larc_policy not in LARC_POLICIES:
            raise CaffeError(
                f"unknown policy '{param.larc_policy}'; known: {', '.join(LARC_POLICIES)}",
                field="larc_policy",
            )

    def _step(self, gradients: Tensors) -> None:
        if self.param.larc:
            self._step_by_layer(gradients)
        elif self._can_use_kernel():
            self._step_by_kernel(gradients)
        elif self._can_fuse():
            self._step_fused(gradients)
        else:
            super()._step(gradients)

    def _step_by_layer(self, gradients: Tensors) -> None:
        """An update at rates that follow the norms of weights and gradients (NVCaffe's LARC).

        The norm is that of the gradient before the decay, and of an lr_mult it only counts whether
        it is 0.
        """
        own = (1 - self.param.momentum) * self.param.larc_eta
        norms = zip(torch._foreach_norm(self.tensors), torch._foreach_norm(gradients), strict=True)
        rates = [torch.where((w > 0) & (g > 0), own * w / g, 1.0) for w, g in norms]
        rates = [
            torch.minimum(self.rate, rate) if self.param.larc_policy == "clip" else self.rate * rate
            for rate in rates
        ]
        for index, rate in enumerate(rates):
            if self._lr_mults[index] <= 0:
                rate = rate * 0
            tensors, gradient = [self.tensors[index]], [gradients[index]]
            regularize(tensors, gradient, self._decays[index], l1=self._l1s[index])
            histories = [[history[index]] for history in self.histories]
            torch._foreach_sub_(tensors, self.update(gradient, histories, rate))

    def _can_use_kernel(self) -> bool:
        """Whether a kernel of our own can do it, which knows one kind of decay for all."""
        one_kind = any(self._l1s) == all(self._l1s)
        fits = bool(self.tensors) and one_kind and self.may_use_kernel
        return fits and kernels.wanted(self.rate.device)

    def _clips_by_kernel(self) -> bool:
        """Whether the kernel clips, too; it knows of no division by iter_size after that."""
        plain = not self.param.larc and self.param.iter_size <= 1
        return self.param.clip_gradients >= 0 and plain and self._can_use_kernel()

    def _clip(self, gradients: Tensors) -> None:
        if not self._clips_by_kernel():
            super()._clip(gradients)

    def _step_by_kernel(self, gradients: Tensors) -> None:
        clips = self._clips_by_kernel()
        if self._kernel is None:
            from caffe_dns.kernels.sgd import SGDKernel

            self._kernel = SGDKernel(
                self.tensors,
                self.histories[0],
                self._lr_mults,
                self._decays,
                momentum=self.param.momentum,
                l1=self._l1s[0],
                nesterov=self.nesterov,
                clip=self.param.clip_gradients if clips else None,
            )
        self._kernel.run(gradients, self.rate)
        if clips:
            self.norm = self._kernel.norm

    def _can_fuse(self) -> bool:
        """Whether PyTorch's own update on a CPU, in one pass over memory, does the same."""
        single = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in self.tensors)
        plain = not self.nesterov and not any(self._l1s) and self.param.momentum > 0
        # The rate last: a GPU would be waited for, and no CUDA graph can have that.
        fits = single and plain and self.may_use_kernel
        return fits and float(self.rate) >= LEAST_FUSED_RATE

    def _step_fused(self, gradients: Tensors) -> None:
        gradients = [laid_out_as(*pair) for pair in zip(self.tensors, gradients, strict=True)]
        for group in self._groups:
            indices = group.indices
            torch._fused_sgd_(
                pick(self.tensors, indices),
                pick(gradients, indices),
                pick(self.histories[0], indices),
                weight_decay=group.decay,
                momentum=self.param.momentum,
                # The rate is inside the history: the gradient's factor there is 1 - dampening.
                lr=1.0,
                dampening=1 - float(self.rate) * group.lr_mult,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )

    def take_rounded(self, params: Iterable[Param]) -> None:
        """Where only the kernel looks at gradients, it reads those of bfloat16 as they are.

        In float32, those of large weights would be written and read once more, and be there when
        memory holds most.
        """
        if self.may_set_apart and self.param.iter_size <= 1 and self._can_use_kernel():
            for param in params:
                if param.tensor.requires_grad:
                    param.tensor.grad_dtype = None

    def track(self, param: Param) -> None:
        super().track(param)
        self._kernel = None

    def drop_gradients(self) -> None:
        super().drop_gradients()
        self._kernel = None

    def finish_capture(self) -> None:
        super().finish_capture()
        if self._kernel is not None:
            self._kernel.write_table()

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        (history,) = histories
        torch._foreach_mul_(history, self.param.momentum)
        torch._foreach_mul_(gradients, rate)
        torch._foreach_add_(history, gradients)
        return history


@solver_types.register("Nesterov")
class Nesterov(SGD):
    """Looks ahead by one momentum step (`nesterov_solver.cpp`)."""

    nesterov = True

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        momentum = self.param.momentum
        before = torch._foreach_mul(histories[0], momentum)
        after = super().update(gradients, histories, rate)
        ahead = torch._foreach_mul(after, 1 + momentum)
        torch._foreach_sub_(ahead, before)
        return list(ahead)
