"""What can be pruned in a module: the weights of its linear maps, by the modules' names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from caffe_dns.errors import BadValue, nearest
from caffe_dns.layers.masked import WeightedLayer

#: Weights that MultiheadAttention holds itself, each with the bias beside it, if it has one.
_ATTENTION = {
    "in_proj_weight": "in_proj_bias",
    "q_proj_weight": None,
    "k_proj_weight": None,
    "v_proj_weight": None,
}


@dataclass(frozen=True)
class PrunableWeight:
    """A parameter of a module, and perhaps the bias that goes with it.

    `name` is the module's name, or the parameter's where a module holds several.
    """

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None = None
    #: The weight's axis of input channels; None where no axis alone has them.
    input_axis: int | None = 1


def find_weights(model: nn.Module, wanted: Iterable[str] | None = None) -> list[PrunableWeight]:
    """The weights of convolutions, also transposed, linear layers and attention, that learn.

    With `wanted`, those alone, in that order; they may name any parameter, too. A weight that
    several modules use comes once, under the first one's name, and can be asked for by any. Raises
    BadValue for a name that is none, and where there is nothing to prune.
    """
    if not isinstance(model, nn.Module):
        raise BadValue(f"what is pruned is a torch.nn.Module, not of type {_kind(model)}")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise BadValue(f"'{name}' has no shape yet: run the model once, then prune it")
    first: dict[int, PrunableWeight] = {}
    names: dict[str, PrunableWeight] = {}
    for weight in _all_weights(model):
        names[weight.name] = first.setdefault(id(weight.weight), weight)
    if wanted is None:
        chosen = [weight for weight in first.values() if weight.weight.requires_grad]
    else:
        chosen = [names.get(name) or _parameter(model, name, names, first) for name in wanted]
        if not chosen:
            raise BadValue("layers: names nothing")
    if not chosen:
        others = ", ".join(count_others(model, ()))
        raise BadValue(
            "the model has no weights that learn in convolutions or linear layers"
            + (f"; parameters of {others} are pruned where `layers` names them" if others else "")
        )
    if len({id(weight.weight) for weight in chosen}) < len(chosen):
        raise BadValue("two of the names are of the same weight")
    if len({weight.weight.device for weight in chosen}) > 1:
        raise BadValue("the model lies on several devices; what is pruned must lie on one")
    for weight in chosen:
        _check(weight)
    return list(_without_shared_biases(chosen))


def count_others(model: nn.Module, pruned: Iterable[Tensor]) -> dict[str, int]:
    """How many parameters are not among those that are pruned, by the types of their modules."""
    seen = {id(parameter) for parameter in pruned}
    counts: Counter[str] = Counter()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                counts[_kind(module)] += parameter.numel()
    return dict(counts.most_common())


def _without_shared_biases(weights: Sequence[PrunableWeight]) -> Iterator[PrunableWeight]:
    """A bias of several weights counts with the first, one that was asked for by itself alone.

    One that does not learn counts with none.
    """
    seen = {id(weight.weight) for weight in weights}
    for weight in weights:
        bias = weight.bias
        if bias is not None and (id(bias) in seen or not bias.requires_grad):
            weight = replace(weight, bias=None)
        seen.add(id(bias))
        yield weight


def _all_weights(model: nn.Module) -> Iterator[PrunableWeight]:
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if isinstance(module, _ConvNd | nn.Linear) or _is_plain_layer(module):
            weight, bias = _own(module, "weight"), _own(module, "bias")
            if weight is not None:
                yield PrunableWeight(name or "weight", weight, bias, _input_axis(module))
        elif isinstance(module, nn.MultiheadAttention):
            for kind, beside in _ATTENTION.items():
                weight = _own(module, kind)
                bias = _own(module, beside) if beside else None
                if weight is not None:
                    yield PrunableWeight(f"{prefix}{kind}", weight, bias)


def _input_axis(module: nn.Module) -> int | None:
    if isinstance(module, WeightedLayer):
        return module.input_axis
    if isinstance(module, _ConvTransposeNd):
        return 0 if module.groups == 1 else None
    return 1


def _is_plain_layer(module: nn.Module) -> bool:
    """Whether it is a layer of Caffe with a weight, and without masks of its own."""
    return isinstance(module, WeightedLayer) and not module.mask_indices


def _own(module: nn.Module, name: str) -> nn.Parameter | None:
    """A module's parameter, unless it is computed of others (parametrizations)."""
    parameter = module._parameters.get(name)
    return parameter if isinstance(parameter, nn.Parameter) else None


def _parameter(
    model: nn.Module,
    name: str,
    names: dict[str, PrunableWeight],
    first: dict[int, PrunableWeight],
) -> PrunableWeight:
    """The parameter that is called so."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters:
        known = [*names, *parameters]
        module = dict(model.named_modules(remove_duplicate=False)).get(name)
        if module is not None and (inside := [k for k in known if k.startswith(f"{name}.")]):
            raise BadValue(
                f"'{name}' is of type {_kind(module)}: name what is in it, such as "
                f"'{inside[0]}', not the whole"
            )
        raise BadValue(
            f"the model has no weight '{name}'{nearest(name, known)}; "
            f"there are: {', '.join(names) or 'none'}"
        )
    parameter = parameters[name]
    axis = 1 if parameter.dim() > 1 else None
    return first.get(id(parameter)) or PrunableWeight(name, parameter, input_axis=axis)


def _kind(thing: object) -> str:
    return type(thing).__name__


def _check(weight: PrunableWeight) -> None:
    parameter = weight.weight
    if parameter.is_meta or not parameter.numel():
        raise BadValue(f"'{weight.name}' has no values: give the model some, then prune it")
    if parameter.is_inference():
        raise BadValue(
            f"'{weight.name}' was made in torch.inference_mode, and cannot be trained nor pruned"
        )
    if type(parameter.data) is not Tensor:
        raise BadValue(
            f"'{weight.name}' is a {_kind(parameter.data)}; what can be pruned are "
            "parameters that each process has whole"
        )
    if parameter.dtype not in (torch.float32, torch.float64):
        raise BadValue(
            f"'{weight.name}' is of {parameter.dtype}: keep the parameters in float32, in which "
            "small updates add up, and let torch.autocast round"
        )
    for values in (parameter, weight.bias):
        if values is not None and not bool(values.isfinite().all()):
            raise BadValue(f"'{weight.name}' has values that are not finite numbers")
