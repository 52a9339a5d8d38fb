"""What every update rule is: from summed gradients to an update, as functions of lists of tensors.

A rule implements one method, `update`. In an iteration, `apply` clips the summed gradients, divides
them by iter_size, adds the decay and lets the rule compute the update (`SGDSolver::ApplyUpdate`).
Everything runs in `torch._foreach_*` calls over all parameters at once, or on a GPU in a kernel of
our own; the rate is a 0-dim tensor, so that a captured step can be replayed with another rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.net.params import Param
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.registry import Registry

Tensors = list[Tensor]

solver_types: Registry[type[UpdateRule]] = Registry("solver type")


#: The norms that a decay may be the gradient of.
REGULARIZATIONS = ("L1", "L2")


@dataclass(frozen=True)
class Group:
    """Parameters, by their indices, with the same learning rate and decay."""

    indices: list[int]
    lr_mult: float
    decay: float
    l1: bool


#: The weight of a new gradient in the running mean of squares: it averages over some 500.
_NEW_SHARE = 0.002


class UpdateRule:
    """State and arithmetic of one solver type for the parameters that it updates.

    `histories` holds one list of tensors per moment, in the order of a solver state. Masks take no
    part; parameters with lr_mult 0 do, as their history grows in Caffe, too.
    """

    #: How many histories the rule keeps for each parameter.
    num_histories = 1
    #: See `keep_squares`.
    _squares: Tensors | None = None
    #: Whether the histories of parameters that do not learn still change, through the decay.
    tracks_frozen = True
    #: Whether a kernel may do the whole update; otherwise every step goes through `update`.
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
        self._places = {param: place for place, param in enumerate(self.params)}
        self.tensors: Tensors = [p.tensor.detach() for p in self.params]
        self.histories: list[Tensors] = [
            [torch.zeros_like(tensor) for tensor in self.tensors] for _ in range(self.num_histories)
        ]
        decay = param.weight_decay
        self._decays = [_float32(decay * p.decay_mult) for p in self.params]
        self._lr_mults = [p.lr_mult for p in self.params]
        self._l1s = [self._is_l1(p) for p in self.params]
        device = self.tensors[0].device if self.tensors else torch.device("cpu")
        #: The learning rate of the next update, on the parameters' device.
        self.rate = torch.zeros((), device=device)
        #: The gradients' norm in the last update, when clip_gradients asks for it.
        self.norm: Tensor | None = None
        #: What was set apart: the rules that move a part of these, and their histories as a whole.
        self._apart: dict[Param, tuple[UpdateRule, Tensors]] = {}
        self._groups = self._group()

    def _group(self) -> list[Group]:
        """Parameters that one call can update together."""
        groups: dict[tuple[float, float, bool], list[int]] = {}
        keys = zip(self._lr_mults, self._decays, self._l1s, strict=True)
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        return [Group(indices, *key) for key, indices in groups.items()]

    def _is_l1(self, param: Param) -> bool:
        """Whether the decay of a parameter is that of L1. Raises CaffeError for an unknown type."""
        kind = param.regularization_type or self.param.regularization_type
        if kind not in REGULARIZATIONS:
            raise param.layer.error(_unknown(kind), "param.regularization_type")
        return kind == "L1"

    def _check(self, param: SolverParameter) -> None:
        if param.regularization_type not in REGULARIZATIONS:
            raise CaffeError(_unknown(param.regularization_type), field="regularization_type")
        if param.larc:
            self._check_larc(param)

    def _check_larc(self, param: SolverParameter) -> None:
        raise CaffeError(f"is for SGD, not for {param.type}", field="larc")

    def begin(self, iteration: int, rate: float) -> None:
        """Prepare the update of an iteration, counted from 0."""
        self.rate.fill_(rate)

    @property
    def may_set_apart(self) -> bool:
        """Whether nothing reads whole gradients, as a norm would."""
        by_norms = self.param.clip_gradients >= 0 or self.param.larc
        return not (by_norms or self.param.debug_info or self._squares is not None)

    def set_apart(self, param: Param, part: Callable[[Tensor], Tensor]) -> UpdateRule:
        """Leave a parameter to a rule that moves a part of it, at the same rate, by `apply_to`.

        `part` gives this part, a view, of what has the parameter's shape. Only before the first
        update, and where the rule `may_set_apart`.
        """
        own = type(self)(self.param, [param])
        own.rate = self.rate
        whole = [moment[0] for moment in own.histories]
        own.tensors = [part(tensor) for tensor in own.tensors]
        own.histories = [[part(history)] for history in whole]
        self._apart[param] = own, whole
        place = self._places[param]
        self.params.pop(place)
        for tensors in (self.tensors, *self.histories):
            tensors.pop(place)
        for settings in (self._decays, self._lr_mults, self._l1s):
            settings.pop(place)
        self._places = {other: place for place, other in enumerate(self.params)}
        self._groups = self._group()
        return own

    def take_rounded(self, params: Iterable[Param]) -> None:
        """Let the gradients of these come as they are computed, where the rule reads them so."""

    def histories_apart(self) -> Tensors:
        """The histories of what was set apart, of which this process knows a part."""
        return [history for _, whole in self._apart.values() for history in whole]

    def _rules_apart(self) -> Iterator[UpdateRule]:
        return (rule for rule, _ in self._apart.values())

    def follow(self) -> None:
        """Go where the parameters lie by now, which `share_weights` may have changed."""
        for param, tensor in zip(self.params, self.tensors, strict=True):
            if tensor.data_ptr() != param.tensor.data_ptr():
                tensor.data = param.tensor.detach()

    def apply(self) -> None:
        """One update from the gradients that backward left; frees them."""
        self.apply_to(self._take_gradients())

    @torch.no_grad()
    def apply_to(self, gradients: Tensors) -> None:
        """One update from the summed gradients of `tensors`, which may be overwritten."""
        if self._squares is not None:
            squares = torch._foreach_mul(gradients, gradients)
            torch._foreach_lerp_(self._squares, squares, _NEW_SHARE)
        self._clip(gradients)
        if self.param.iter_size > 1 and gradients:
            torch._foreach_mul_(gradients, _float32(1.0 / self.param.iter_size))
        self._step(gradients)

    def _step(self, gradients: Tensors) -> None:
        """Decay, rule and update, from the gradients of the iteration."""
        for group in self._groups:
            indices = group.indices
            tensors, grads = pick(self.tensors, indices), pick(gradients, indices)
            regularize(tensors, grads, group.decay, l1=group.l1)
            histories = [pick(history, indices) for history in self.histories]
            rate = self.rate if group.lr_mult == 1 else self.rate * group.lr_mult
            torch._foreach_sub_(tensors, self.update(grads, histories, rate))

    def track(self, param: Param) -> None:
        """Take in a parameter that does not learn, for a solver state has a history for it.

        With momentum, what is left of the history still moves it, as in Caffe.
        """
        tensor = param.tensor.detach()
        self._places[param] = len(self.params)
        self.params.append(param)
        self.tensors.append(tensor)
        for history in self._all_histories():
            history.append(torch.zeros_like(tensor))
        self._decays.append(_float32(self.param.weight_decay * param.decay_mult))
        self._lr_mults.append(param.lr_mult)
        self._l1s.append(self._is_l1(param))
        self._groups = self._group()

    def keep_squares(self) -> dict[int, Tensor]:
        """From now on, keep a running mean of each gradient's square, as the last history.

        Returns these by the addresses of their parameters, of those alone that have gradients.
        """
        self._squares = [torch.zeros_like(tensor) for tensor in self.tensors]
        self.num_histories += 1
        return {
            param.tensor.data_ptr(): squares
            for param, squares in zip(self.params, self._squares, strict=True)
            if param.tensor.requires_grad
        }

    def _all_histories(self) -> list[Tensors]:
        return self.histories if self._squares is None else [*self.histories, self._squares]

    def history(self, param: Param, moment: int) -> Tensor | None:
        """The history of one parameter, or None for one that the rule does not move."""
        if param in self._apart:
            return self._apart[param][1][moment]
        place = self._places.get(param)
        return None if place is None else self._all_histories()[moment][place]

    def update(self, gradients: Tensors, histories: list[Tensors], rate: Tensor) -> Tensors:
        """What to subtract from the parameters; changes `histories` in place.

        `gradients` may be overwritten. `rate` already contains lr_mult.
        """
        raise NotImplementedError

    def drop_gradients(self) -> None:
        """Drop the gradients of a backward pass that was not completed."""
        for param in self.params:
            param.tensor.grad = None
        for rule in self._rules_apart():
            rule.drop_gradients()

    def finish_capture(self) -> None:
        """To be called after an update was captured as a CUDA graph, before the first replay."""
        for rule in self._rules_apart():
            rule.finish_capture()

    def _take_gradients(self) -> Tensors:
        gradients = []
        for param, tensor in zip(self.params, self.tensors, strict=True):
            owner = param.tensor
            gradient = owner.grad
            owner.grad = None
            gradients.append(torch.zeros_like(tensor) if gradient is None else gradient)
        return gradients

    def _clip(self, gradients: Tensors) -> None:
        """Scale all gradients down if their joint norm is above clip_gradients."""
        limit = self.param.clip_gradients
        if limit < 0 or not gradients:
            return
        self.norm = torch.stack(torch._foreach_norm(gradients)).norm()
        torch._foreach_mul_(gradients, torch.where(self.norm > limit, limit / self.norm, 1.0))

    def log_clipping(self) -> None:
        """Log it if the last update clipped its gradients; waits for the device."""
        limit = self.param.clip_gradients
        if self.norm is not None and (norm := float(self.norm)) > limit:
            log.info(
                f"Gradient clipping: scaling down gradients (L2 norm {log.number(norm)} > "
                f"{log.number(limit)}) by scale factor {log.number(limit / norm)}"
            )


def regularize(tensors: Tensors, gradients: Tensors, decay: float, *, l1: bool) -> None:
    """Add the gradient of the decay, of L2 or of L1, to the gradients of the tensors."""
    if decay == 0:
        return
    if l1:
        tensors = list(torch._foreach_sign(tensors))
    torch._foreach_add_(gradients, tensors, alpha=decay)


def _unknown(kind: str) -> str:
    return f"unknown regularization type '{kind}'; known: {', '.join(REGULARIZATIONS)}"


def _float32(value: float) -> float:
    """`value` rounded to single precision, as Caffe's float arithmetic has it."""
    return float(torch.tensor(value, dtype=torch.float32))


def pick(tensors: Tensors, indices: list[int]) -> Tensors:
    return [tensors[index] for index in indices]
