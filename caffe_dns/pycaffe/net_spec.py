"""Net definitions written as Python expressions (`net_spec.py` of pycaffe).

    net = NetSpec()
    net.data = layers.Input(shape={"dim": [1, 3, 32, 32]})
    net.conv1 = layers.Convolution(net.data, num_output=16, kernel_size=3)
    net.relu1 = layers.ReLU(net.conv1, in_place=True)
    net.to_proto()

What the names and values mean is not checked here but where a net is built.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from caffe_dns.errors import CaffeError, nearest
from caffe_dns.layers.base import layer_types
from caffe_dns.proto import caffe_pb2
from caffe_dns.proto.caffe_pb2 import LayerParameter, NetParameter
from caffe_dns.registry import is_missing

_SUFFIX = "_param"


class Top:
    """Top number `n` of the layer `fn`."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn = fn
        self.n = n

    def to_proto(self) -> NetParameter:
        """The definition of all layers that this top needs, with names of their own."""
        return to_proto(self)


class Function:
    """A layer: its type, its bottoms and its settings.

    The settings `ntop` (1) and `in_place` (False) are for the expression; all others are fields of
    the layer, or of the message for its type.
    """

    def __init__(self, type_name: str, inputs: Iterable[Top], settings: Mapping[str, Any]) -> None:
        self.type_name = type_name
        self.inputs = tuple(inputs)
        for index, bottom in enumerate(self.inputs):
            if not isinstance(bottom, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(bottom)})")
        self.params = dict(settings)
        self.ntop: int = self.params.pop("ntop", 1)
        self.in_place: bool = self.params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))

    def to_proto(self) -> NetParameter:
        """The definition of this layer and all that it needs."""
        return to_proto(self)


class NetSpec:
    """A net as a set of tops, each assigned to an attribute or an item, which names it.

    A layer without tops is assigned as it is.
    """

    tops: OrderedDict[str, Top | Function]

    def __init__(self) -> None:
        object.__setattr__(self, "tops", OrderedDict())

    def __setattr__(self, name: str, top: Any) -> None:
        self.tops[name] = top

    def __getattr__(self, name: str) -> Any:
        try:
            return self.tops[name]
        except KeyError:
            raise AttributeError(f"nothing has been assigned to '{name}' yet") from None

    def __setitem__(self, name: str, top: Top | Function) -> None:
        self.tops[name] = top

    def __getitem__(self, name: str) -> Any:
        return self.tops[name]

    def __delitem__(self, name: str) -> None:
        del self.tops[name]

    # As the net_spec.py of SSD and NVCaffe has them.

    def keys(self) -> list[str]:
        """The names that tops were assigned to, in order."""
        return list(self.tops)

    def vals(self) -> list[Top | Function]:
        """The tops, in the order of their names."""
        return list(self.tops.values())

    def update(self, name: str, params: Mapping[str, Any]) -> None:
        """Change settings of the layer that makes the top of this name."""
        top = self.tops[name]
        (top.fn if isinstance(top, Top) else top).params.update(params)

    def to_proto(self) -> NetParameter:
        """The definition of all assigned tops and what they need."""
        names = {top: name for name, top in self.tops.items()}
        return _definition(self.tops.values(), names)


class Layers:
    """Any layer type as a function of its bottoms and settings.

    It returns the layer's top, a tuple if there are several, or the layer if there is none.
    """

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def make(*inputs: Top, **settings: Any) -> Function | Top | tuple[Top, ...]:
            layer = Function(name, inputs, settings)
            if not layer.tops:
                return layer
            return layer.tops[0] if layer.ntop == 1 else layer.tops

        return make


class Parameters:
    """The constants of a layer type: `params.Pooling.MAX`."""

    def __getattr__(self, name: str) -> Any:
        message = getattr(caffe_pb2, f"{name}Parameter", None)
        if message is None:
            raise AttributeError(f"there is no message {name}Parameter")
        return message


layers = Layers()
params = Parameters()


def to_proto(*tops: Top | Function) -> NetParameter:
    """The definition of all layers that `tops` need, named by type and number."""
    return _definition(tops, {})


def param_name_dict() -> dict[str, str]:
    """The name of each message for a layer type, and its field in a layer, both without suffix."""
    return {name: field.name.removesuffix(_SUFFIX) for name, field in _OWN_FIELDS.items()}


def assign_proto(proto: Any, name: str, value: Any) -> None:
    """Set a field: a dict fills a message, a list a repeated field; a single value there is one
    entry.
    """
    field = proto.DESCRIPTOR.fields_by_name.get(name)
    if field is None:
        near = nearest(name, list(proto.DESCRIPTOR.fields_by_name))
        raise AttributeError(f"{proto.DESCRIPTOR.name} has no field '{name}'{near}")
    target = getattr(proto, name)
    if hasattr(target, "extend"):
        for entry in value if isinstance(value, list | tuple) else [value]:
            if isinstance(entry, Mapping):
                _fill(target.add(), entry)
            else:
                target.append(entry)
    elif isinstance(value, Mapping):
        target.SetInParent()
        _fill(target, value)
    else:
        setattr(proto, name, value)


def _fill(message: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        assign_proto(message, name, value)


def _definition(tops: Iterable[Top | Function], names: dict[Top | Function, str]) -> NetParameter:
    net = NetParameter()
    namer = _Namer(names)
    top_names: dict[Function, list[str]] = {}
    for function in _in_order(tops):
        bottoms = [top_names[bottom.fn][bottom.n] for bottom in function.inputs]
        made = [namer.name(top, function) for top in function.tops]
        layer = net.layer.add(type=function.type_name, bottom=bottoms)
        layer.top.extend(bottoms if function.in_place else made)
        layer.name = made[0] if made else namer.name(function, function)
        top_names[function] = list(layer.top)
        for name, value in function.params.items():
            _set(layer, name, value)
    return net


class _Namer:
    """Names that were given, and numbered ones for the rest."""

    def __init__(self, names: dict[Top | Function, str]) -> None:
        self._names = names
        self._numbers: Counter[str] = Counter()

    def name(self, item: Top | Function, function: Function) -> str:
        if item not in self._names:
            self._numbers[function.type_name] += 1
            self._names[item] = f"{function.type_name}{self._numbers[function.type_name]}"
        return self._names[item]


def _in_order(tops: Iterable[Top | Function]) -> Iterator[Function]:
    """The layers that `tops` need, each once, after its bottoms."""
    done: set[Function] = set()
    for top in tops:
        # A stack, not recursion: nets are deeper than Python's calls may be.
        waiting = [top if isinstance(top, Function) else top.fn]
        while waiting:
            function = waiting[-1]
            missing = [bottom.fn for bottom in function.inputs if bottom.fn not in done]
            if missing:
                waiting.append(missing[0])
                continue
            waiting.pop()
            if function not in done:
                done.add(function)
                yield function


def _set(layer: LayerParameter, name: str, value: Any) -> None:
    """Set a field of the layer, or of the message for its type, which goes first."""
    own = _OWN_FIELDS.get("Convolution" if layer.type == "Deconvolution" else layer.type)
    fields = own.message_type.fields_by_name if own else {}
    try:
        if own and name in fields and not name.endswith("param"):
            assign_proto(getattr(layer, own.name), name, value)
        elif name in LayerParameter.DESCRIPTOR.fields_by_name:
            assign_proto(layer, name, value)
        else:
            raise AttributeError(_no_field(layer, name, fields))
    except AttributeError as error:
        raise CaffeError(str(error), layer=layer.name) from None
    except (TypeError, ValueError) as error:
        raise CaffeError(
            f"does not take {value!r}: {error}", layer=layer.name, field=name
        ) from None


def _no_field(layer: LayerParameter, name: str, own: Iterable[str]) -> str:
    """That a layer has no such field; perhaps because nobody knows its type."""
    near = nearest(name, [*own, *LayerParameter.DESCRIPTOR.fields_by_name])
    message = f"LayerParameter has no field '{name}'{near}"
    if is_missing(layer_types.kind, layer.type):
        near = nearest(layer.type, list(layer_types))
        message += f"; there is no layer type '{layer.type}'{near}"
    return message


#: The field of LayerParameter for a layer type, by the name of its message. Where forks have fields
#: with the same message, it is that of Caffe, which stands before them.
_OWN_FIELDS: dict[str, Any] = {
    field.message_type.name.removesuffix("Parameter"): field
    for field in reversed(LayerParameter.DESCRIPTOR.fields)
    if field.name.endswith(_SUFFIX)
}
