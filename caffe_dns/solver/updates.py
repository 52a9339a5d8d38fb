"""Caffe's six update rules, as functions of lists of tensors.

One base, one method per rule. In an iteration, `apply` clips the summed gradients, divides them
by iter_size, adds the decay and lets the rule compute the update (`SGDSolver::ApplyUpdate` and
the files in `src/caffe/solvers`). Everything runs in `torch._foreach_*` calls over all parameters
at once, or in a kernel of our own on a GPU; the rate is a 0-dim tensor, so that a captured step can
be replayed with another rate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffe_dns import kernels, log
from caffe_dns.device.memory_format import laid_out_as
from caffe_dns.errors import CaffeError
from caffe_dns.net.params import Param
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.registry import Registry

if TYPE_CHECKING:
    from caffe_dns.kernels.sgd import SGDKernel

Tensors = list[Tensor]

solver_types: Registry[UpdateRule] = Registry("solver type")


class UpdateRule:
    """State and arithmetic of one solver type over the parameters that it moves.

    `histories` holds one list of tensors per moment, in the order of a solver state. Masks take no
    part; parameters with lr_mult 0 do, as their history grows in Caffe, too.
    """

    #: How many histories the rule keeps for each parameter.
    num_histories = 1
    #: Whether the histories of parameters that do not learn change all the same, through the decay.
    tracks_frozen = True
    #: Whether a kernel may do it all at once; else every step goes through `update`.
    may_use_kernel = True

    def __init__(self, param: SolverParameter, params: Sequence[Param]) -> None:
        self.param = param
        self._check(param)
        self.params = [
            p
            for p in params
            if not p.is_mask
            # Under force_backward, gradients of what does not learn count in clip_gradients.
            and (self.tracks_frozen or p.lr_mult != 0 or p.tensor.requires_grad)
        ]
        self.tensors: Tensors = [p.tensor.detach() for p in self.params]
        self.histories: list[Tensors] = [
            [torch.zeros_like(tensor) for tensor in self.tensors] for _ in range(self.num_histories)
        ]
        decay = param.weight_decay
        self._decays = [_float32(decay * p.decay_mult) for p in self.params]
        self._lr_mults = [p.lr_mult for p in self.params]
        device = self.tensors[0].device if self.tensors else torch.device("cpu")
        #: The learning rate of the next update, on the parameters' device.
        self.rate = torch.zeros((), device=device)
        #: The gradients' norm in the last update, when clip_gradients asks for it.
        self.norm: Tensor | None = None
        self._groups = _group(list(zip(self._lr_mults, self._decays, strict=True)))

    def _check(self, param: SolverParameter) -> None:
        if param.regularization_type not in ("L1", "L2"):
            raise CaffeError(
                f"unknown regularization type '{param.regularization_type}'; known: L1, L2",
                field="regularization_type",
            )

    @torch.no_grad()
    def apply(self) -> None:
        """One update from the gradients that backward left; frees them."""
        gradients = self._take_gradients()
        self._clip(gradients)
        if self.param.iter_size > 1:
            torch._foreach_mul_(gradients, _float32(1.0 / self.param.iter_size))
        self._step(gradients)

    def _step(self, gradients: Tensors) -> None:
        """Decay, rule and update, from the gradients of the iteration."""
        for indices, lr_mult, decay in self._groups:
            tensors, grads = _pick(self.tensors, indices), _pick(gradients, indices)
            self._regularize(tensors, grads, decay)
            histories = [_pick(history, indices) for history in self.histories]
            rate = self.rate if lr_mult == 1 else self.rate * lr_mult
            torch._foreach_sub_(tensors, self.update(grads, histories, rate))

    def track(self, param: Param) -> None:
        """Take in a parameter that does not learn, for a solver state has a history for it.

        With momentum, what is left of the history still moves it, as in Caffe.
        """
        tensor = param.tensor.detach()
        self.params.append(param)
        self.tensors.append(tensor)
        for history in self.histories:
            history.append(torch.zeros_like(tensor))
        self._decays.append(_float32(self.param.weight_decay * param.decay_mult))
        self._lr_mults.append(param.lr_mult)
        self._groups = _group(list(zip(self._lr_mults, self._decays, strict=True)))

    def history(self, param: Param, moment: int) -> Tensor | None:
        """The history of one parameter, or None for one that the rule does not move."""
        for index, candidate in enumerate(self.params):
            if candidate is param:
                return self.histories[moment][index]
        return None

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        """What to subtract from the parameters; changes `histories` in place.

        `gradients` may be overwritten. `rate` already contains lr_mult.
        """
        raise NotImplementedError

    def drop_gradients(self) -> None:
        """Forget the gradients of a backward pass that did not come to its end."""
        for param in self.params:
            param.tensor.grad = None

    def finish_capture(self) -> None:
        """To be called after an update was captured as a CUDA graph, before the first replay."""

    def _take_gradients(self) -> Tensors:
        gradients = []
        for param, tensor in zip(self.params, self.tensors, strict=True):
            owner = param.tensor
            gradient = owner.grad
            owner.grad = None
            gradients.append(torch.zeros_like(tensor) if gradient is None else gradient)
        return gradients

    def _clip(self, gradients: Tensors) -> None:
        """Scale all gradients down when their common norm is above clip_gradients."""
        limit = self.param.clip_gradients
        if limit < 0 or not gradients:
            return
        self.norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, torch.where(self.norm > limit, limit / self.norm, 1.0))

    def log_clipping(self) -> None:
        """Say so if the last update scaled its gradients down; waits for the device."""
        limit = self.param.clip_gradients
        if self.norm is not None and (norm := float(self.norm)) > limit:
            log.info(
                f"Gradient clipping: scaling down gradients (L2 norm {log.number(norm)} > "
                f"{log.number(limit)}) by scale factor {log.number(limit / norm)}"
            )

    def _regularize(self, tensors: Tensors, gradients: Tensors, decay: float) -> None:
        if decay == 0:
            return
        if self.param.regularization_type == "L1":
            tensors = list(torch._foreach_sign(tensors))
        torch._foreach_add_(gradients, tensors, alpha=decay)


@solver_types.register("SGD")
class SGD(UpdateRule):
    """h = momentum * h + rate * g; the rate is inside the history (`sgd_solver.cpp`)."""

    tracks_frozen = False
    nesterov = False
    _kernel: SGDKernel | None = None

    def _step(self, gradients: Tensors) -> None:
        if self.tensors and self.may_use_kernel and kernels.wanted(self.rate.device):
            self._step_by_kernel(gradients)
        elif self._can_fuse():
            self._step_fused(gradients)
        else:
            super()._step(gradients)

    def _step_by_kernel(self, gradients: Tensors) -> None:
        if self._kernel is None:
            from caffe_dns.kernels.sgd import SGDKernel

            self._kernel = SGDKernel(
                self.tensors,
                self.histories[0],
                self._lr_mults,
                self._decays,
                momentum=self.param.momentum,
                l1=self.param.regularization_type == "L1",
                nesterov=self.nesterov,
            )
        self._kernel.run(gradients, self.rate)

    def _can_fuse(self) -> bool:
        """Whether PyTorch's own update on a CPU, in one pass over memory, does the same."""
        single = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in self.tensors)
        plain = not self.nesterov and self.param.regularization_type == "L2"
        return single and plain and self.may_use_kernel and self.param.momentum > 0

    def _step_fused(self, gradients: Tensors) -> None:
        gradients = [laid_out_as(*pair) for pair in zip(self.tensors, gradients, strict=True)]
        for indices, lr_mult, decay in self._groups:
            torch._fused_sgd_(
                _pick(self.tensors, indices),
                _pick(gradients, indices),
                _pick(self.histories[0], indices),
                weight_decay=decay,
                momentum=self.param.momentum,
                # The rate is inside the history: the gradient's factor there is 1 - dampening.
                lr=1.0,
                dampening=1 - float(self.rate) * lr_mult,
                nesterov=False,
                maximize=False,
                is_first_step=False,
            )

    def track(self, param: Param) -> None:
        super().track(param)
        self._kernel = None

    def drop_gradients(self) -> None:
        super().drop_gradients()
        self._kernel = None

    def finish_capture(self) -> None:
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


class Adaptive(UpdateRule):
    """Rules that keep squares of gradients, and no momentum."""

    def _check(self, param: SolverParameter) -> None:
        super()._check(param)
        if param.momentum != 0:
            raise CaffeError(
                f"momentum cannot be used with {param.type}; leave it out", field="momentum"
            )

    def scaled(self, gradients: Tensors, squares: Tensors, rate: Tensor) -> Tensors:
        """rate * g / (sqrt(squares) + delta)."""
        below = torch._foreach_sqrt(squares)
        torch._foreach_add_(below, self.param.delta)
        torch._foreach_div_(gradients, below)
        torch._foreach_mul_(gradients, rate)
        return gradients


@solver_types.register("AdaGrad")
class AdaGrad(Adaptive):
    """h = h + g^2 (`adagrad_solver.cpp`)."""

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        torch._foreach_addcmul_(histories[0], gradients, gradients)
        return self.scaled(gradients, histories[0], rate)


@solver_types.register("RMSProp")
class RMSProp(Adaptive):
    """h = rms_decay * h + (1 - rms_decay) * g^2 (`rmsprop_solver.cpp`)."""

    def _check(self, param: SolverParameter) -> None:
        super()._check(param)
        if not 0 <= param.rms_decay < 1:
            raise CaffeError(f"must lie in [0, 1), not {param.rms_decay:g}", field="rms_decay")

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        _decay_squares(histories[0], gradients, self.param.rms_decay)
        return self.scaled(gradients, histories[0], rate)


@solver_types.register("AdaDelta")
class AdaDelta(UpdateRule):
    """Histories of squared gradients and of squared updates (`adadelta_solver.cpp`)."""

    num_histories = 2

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        squares, updates = histories
        momentum, delta = self.param.momentum, self.param.delta
        _decay_squares(squares, gradients, momentum)
        ratio = torch._foreach_add(updates, delta)
        torch._foreach_div_(ratio, torch._foreach_add(squares, delta))
        torch._foreach_sqrt_(ratio)
        torch._foreach_mul_(gradients, ratio)
        _decay_squares(updates, gradients, momentum)
        torch._foreach_mul_(gradients, rate)
        return gradients


@solver_types.register("Adam")
class Adam(UpdateRule):
    """First and second moments, corrected for their start at 0 (`adam_solver.cpp`)."""

    num_histories = 2

    def __init__(self, param: SolverParameter, params: Sequence[Param]) -> None:
        super().__init__(param, params)
        #: sqrt(1 - beta2^t) / (1 - beta1^t) of the next update.
        self.correction = torch.ones((), device=self.rate.device)

    def set_iteration(self, iteration: int) -> None:
        """Fix the bias correction for the update of this iteration, counted from 0."""
        step = iteration + 1
        first = 1.0 - self.param.momentum**step
        second = 1.0 - self.param.momentum2**step
        self.correction.fill_(second**0.5 / first)

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        means, squares = histories
        torch._foreach_mul_(means, self.param.momentum)
        torch._foreach_add_(means, gradients, alpha=1 - self.param.momentum)
        _decay_squares(squares, gradients, self.param.momentum2)
        below = torch._foreach_sqrt(squares)
        torch._foreach_add_(below, self.param.delta)
        result = torch._foreach_div(means, below)
        torch._foreach_mul_(result, rate * self.correction)
        return list(result)


def _decay_squares(squares: Tensors, values: Tensors, decay: float) -> None:
    """squares = decay * squares + (1 - decay) * values^2, in place."""
    torch._foreach_mul_(squares, decay)
    torch._foreach_addcmul_(squares, values, values, value=1 - decay)


def _float32(value: float) -> float:
    """`value` rounded to single precision, as Caffe's float arithmetic has it."""
    return float(torch.tensor(value, dtype=torch.float32))


def _group(keys: Sequence[tuple[float, float]]) -> list[tuple[list[int], float, float]]:
    """Parameter indices with the same (lr_mult, decay), which one call can update together."""
    groups: dict[tuple[float, float], list[int]] = {}
    for index, pair in enumerate(keys):
        groups.setdefault(pair, []).append(index)
    return [(indices, lr_mult, decay) for (lr_mult, decay), indices in groups.items()]


def _pick(tensors: Tensors, indices: list[int]) -> Tensors:
    return [tensors[index] for index in indices]
