"""Keeps masks applied to a module's parameters while someone else's loop trains it.

Outside the optimizer's step, a parameter is what its mask leaves of it. So whatever reads it, in
whatever way, computes with the pruned weight, and its gradient is the one at the pruned weight, for
pruned entries, too. What the mask takes away is stored in `pruned`: parameter + pruned is the whole
weight at all times. During an optimizer's step, the parameters hold the whole weights, so that
pruned entries are updated like the others, including decay, and may come back.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, SupportsIndex

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

from caffe_dns.errors import BadValue
from caffe_dns.kernels import is_capturing
from caffe_dns.proto.caffe_pb2 import SurgeryMoments
from caffe_dns.surgery.layer_count import LayerCount, count_line, sum_line
from caffe_dns.surgery.masked_layers import MaskedLayer
from caffe_dns.surgery.modules.adopted import Adopted
from caffe_dns.surgery.modules.kept_apart import KeptApart
from caffe_dns.surgery.modules.weights import count_others
from caffe_dns.surgery.stages import Stage
from caffe_dns.surgery.surgeon import Surgeon
from caffe_dns.surgery.target import NetSize

_MOMENTS = ("mu", "sigma", "kept", "threshold")
#: Those that renew masks.
_at_work: weakref.WeakSet[Pruner] = weakref.WeakSet()


class Pruner:
    """Surgery on the parameters of a module; `caffe_dns.prune` makes one.

    Call `step` after each step of the optimizer. `layers` are the module's parameters with their
    masks. Raises CaffeError for stages that do not fit.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Adopted], stages: Sequence[Stage], seed: int
    ) -> None:
        #: How many steps were taken.
        self.iteration = 0
        self._model = model
        self._total = sum(parameter.numel() for parameter in model.parameters())
        masked_layers = [MaskedLayer(layer) for layer in layers]
        self._surgeon = Surgeon(masked_layers, NetSize(self._total), stages, seed)
        pairs = [
            (parameter, mask)
            for layer in layers
            for parameter, mask in zip(layer.parameters(), layer.mask_blobs(), strict=False)
        ]
        self.weights = KeptApart([p for p, _ in pairs], [mask for _, mask in pairs])
        self._names = _names(model, self.weights.parameters)
        self._check_unshared()
        self._watch: _OptimizerWatch | None = _OptimizerWatch(self)
        _at_work.add(self)
        self._renew_masks()

    # In training --------------------------------------------------------------------------------

    def step(self) -> None:
        """Count a step of the optimizer, and renew the masks if they are due.

        Raises BadValue when the parameters were moved, and while a CUDA graph is being captured.
        """
        watch = self._watch
        if watch is None:
            raise BadValue("the masks were applied for good; prune again to go on")
        self._check_place()
        self.iteration += 1
        if self._surgeon.is_due(self.iteration):
            self._check_model()
            self._renew_masks()
        elif not (watch.seen or watch.recorded):
            self.weights.split()  # Somebody updates by hand.
        watch.forget()

    def _renew_masks(self) -> None:
        self.weights.merge()
        self._surgeon.update_masks(self.iteration)
        self.weights.take_masks()
        self.weights.split()

    def apply(self) -> nn.Module:
        """Leave the pruned weights in the model for good, drop the pruned values, and return it.

        Pruned entries are ordinary zeros then: further training lets them grow.
        """
        self._check_model()
        if self._watch is not None:
            self._watch.stop()
            self._watch = None
        _at_work.discard(self)
        self.weights.forget()
        return self._model

    # What is left -------------------------------------------------------------------------------

    def counts(self) -> list[LayerCount]:
        """How many parameters of each pruned layer are kept. Waits for the device."""
        layers = self._surgeon.masked_layers
        return [LayerCount(layer.name, layer.kept(), layer.size) for layer in layers]

    def report(self) -> str:
        """A line for each pruned layer, one for what is not pruned, and one for the whole model."""
        counts = self.counts()
        lines = [count_line(count) for count in counts]
        if others := count_others(self._model, self.weights.parameters):
            kinds = ", ".join(f"{number} of {kind}" for kind, number in others.items())
            lines.append(f"Not pruned: {kinds}")
        pruned = sum(count.total - count.kept for count in counts)
        return "\n".join([*lines, sum_line(self._total - pruned, self._total)])

    def masks(self) -> dict[str, Tensor]:
        """The masks, True where an entry is kept, by the parameters' names in the model."""
        masks = zip(self._names, self.weights.masks, strict=True)
        return {name: mask.bool() for name, mask in masks}

    # State --------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a run needs to go on exactly, besides the states of model and optimizer."""
        self._check_model()
        return {
            "iteration": self.iteration,
            "masks": self.masks(),
            "pruned": {n: t.clone() for n, t in zip(self._names, self.weights.pruned, strict=True)},
            "layers": {
                entry.layer: {
                    name: getattr(entry, name) for name in _MOMENTS if entry.HasField(name)
                }
                for entry in self._surgeon.moments()
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a pruner of the same model and settings was.

        Load the model's own state as well, before or after. Raises BadValue, and changes nothing,
        when the state belongs to other parameters.
        """
        self._check_state(state)
        for name, mask, pruned in zip(
            self._names, self.weights.masks, self.weights.pruned, strict=True
        ):
            mask.copy_(state["masks"][name])
            pruned.copy_(state["pruned"][name])
        self.weights.take_masks()
        self.iteration = state["iteration"]
        self._surgeon.restore(
            [SurgeryMoments(layer=layer, **values) for layer, values in state["layers"].items()]
        )

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        # A copy would look after nobody's optimizer.
        raise BadValue(
            "a pruner cannot be copied or pickled: take its state_dict(), and load it into one "
            "that the same call of prune makes"
        )

    def _check_state(self, state: Mapping[str, Any]) -> None:
        if not isinstance(state, Mapping):
            raise BadValue(f"is not the state of a pruner, but of type {type(state).__name__}")
        missing = {"iteration", "masks", "pruned", "layers"} - set(state)
        if missing:
            raise BadValue(f"is not the state of a pruner: it has no '{min(missing)}'")
        for name, mask in zip(self._names, self.weights.masks, strict=True):
            for part in ("masks", "pruned"):
                if name not in state[part]:
                    raise BadValue(f"the state has no '{name}': it is of another model")
                shape = tuple(state[part][name].shape)
                if shape != tuple(mask.shape):
                    raise BadValue(
                        f"'{name}' has the shape {tuple(mask.shape)}, in the state {shape}"
                    )
        extra = set(state["masks"]) - set(self._names)
        if extra:
            raise BadValue(f"the state has '{min(extra)}', which is not pruned here")

    def _check_unshared(self) -> None:
        """Raise BadValue where another pruner renews masks of the same parameters."""
        own = {id(p): name for p, name in zip(self.weights.parameters, self._names, strict=True)}
        for other in _at_work:
            for parameter in other.weights.parameters:
                if id(parameter) in own:
                    raise BadValue(
                        f"'{own[id(parameter)]}' is being pruned by another pruner: apply() that "
                        "one first"
                    )

    def _check_model(self) -> None:
        """Raise BadValue where the model has other parameters by now."""
        present = {id(parameter) for parameter in self._model.parameters()}
        for parameter, name in zip(self.weights.parameters, self._names, strict=True):
            if id(parameter) not in present:
                raise BadValue(
                    f"'{name}' is not the parameter any more that it was when it was pruned, so "
                    "that nothing prunes it: replace modules and load states with assign=True "
                    "first, then prune the model"
                )

    def _check_place(self) -> None:
        if is_capturing(self.weights.parameters[0]):
            raise BadValue("step() belongs behind the replay of a CUDA graph, not into the graph")
        for number in self.weights.moved():
            raise BadValue(
                f"'{self._names[number]}' lies elsewhere than it did when it was pruned: move the "
                "model to its device and memory format first, then prune it"
            )


class _OptimizerWatch:
    """Has a pruner's whole weights in their place while optimizers step that update them.

    An optimizer that steps within another's step, as that of ZeRO, is a part of it. A closure sees
    the pruned weights. A pruner that nobody holds any more is not watched for any more.
    """

    def __init__(self, pruner: Pruner) -> None:
        #: Whether a step was seen since the last `forget`.
        self.seen = False
        #: Whether a step was recorded as a CUDA graph: a replay puts the weights apart by itself.
        self.recorded = False
        self._depth = 0
        self._ids = {id(parameter) for parameter in pruner.weights.parameters}
        self._pruner = weakref.ref(pruner)
        handles = (
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(self._after),
        )
        self.stop = weakref.finalize(pruner, _remove, handles)

    def forget(self) -> None:
        self.seen = False
        self._depth = 0

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        pruner = self._concerned(optimizer)
        if pruner is None:
            return None
        if torch._C._current_graph_task_id() >= 0:
            raise BadValue(
                "an optimizer stepped within backward, which still reads the weights: let it step "
                "when backward is over"
            )
        self._depth += 1
        pruner.weights.merge()
        # The optimizer itself comes first.
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._with_masks(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._with_masks(kwargs["closure"])}
        return None

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        pruner = self._concerned(optimizer)
        if pruner is None:
            return
        self._depth -= 1
        if self._depth <= 0:
            pruner.weights.split()
            self.seen = True
            self.recorded |= is_capturing(pruner.weights.parameters[0])

    def _concerned(self, optimizer: Optimizer) -> Pruner | None:
        updated: Iterable[Tensor] = (p for group in optimizer.param_groups for p in group["params"])
        return self._pruner() if any(id(p) in self._ids for p in updated) else None

    def _with_masks(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def masked() -> Any:
            pruner = self._pruner()
            if pruner is None:
                return closure()
            pruner.weights.split()
            try:
                return closure()
            finally:
                pruner.weights.merge()

        return masked


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _names(model: nn.Module, parameters: Iterable[Tensor]) -> list[str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for parameter in parameters]
