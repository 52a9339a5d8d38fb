"""Python: layers that users write in Python, with pycaffe's interface (`python_layer.hpp`).

`UserLayer` is what `caffe.Layer` is to them. Their code sees blobs of numpy arrays; autograd
calls their `backward` for the gradients. It runs only where the context allows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from caffe_dns.blob import Blob, BlobVec, ParamBlob, SyncedMemory
from caffe_dns.layers.base import Layer, Shape, layer_types
from caffe_dns.proto.caffe_pb2 import LayerParameter, Phase
from caffe_dns.user_code import explain, load_class, source_files


class LayerPhase(int):
    """0 in TRAIN and 1 in TEST, as in BVLC's pycaffe; as text the name, as in Faster R-CNN's."""

    def __str__(self) -> str:
        return Phase.Name(self)


class UserLayer:
    """The base class of Python layers.

    A subclass defines `setup(bottom, top)`, `reshape(bottom, top)`, `forward(bottom, top)` and
    `backward(top, propagate_down, bottom)`; bottom and top are lists of blobs. `param_str` is the
    text from the definition (`param_str_` is its old name), `phase` 0 in TRAIN and 1 in TEST, of
    which `str` gives the name.
    """

    type = "Python"
    param_str: str
    param_str_: str
    phase: LayerPhase
    #: The layer's own blobs. Those added in `setup` learn.
    blobs: BlobVec

    def __new__(cls, param: LayerParameter, *args: Any, **kwargs: Any) -> UserLayer:
        self = super().__new__(cls)
        self.blobs = BlobVec()
        self.param_str = self.param_str_ = param.python_param.param_str
        self.phase = LayerPhase(param.phase)
        return self

    def __init__(self, param: LayerParameter) -> None:
        pass

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        pass

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        pass


@dataclass
class Pass:
    """What a forward pass leaves for its backward pass."""

    bottoms: list[SyncedMemory]
    tops: list[Tensor]
    blobs: list[Tensor]


@layer_types.register("Python")
class Python(Layer):
    """A layer whose work `user`, an object of the user's class, does.

    Arrays have the bottoms' type, float32. On a CPU a bottom's array is the bottom itself, and
    what the user writes there is seen by other readers, as in Caffe; an in-place layer gets a copy.
    """

    bottoms = (0, None)
    tops = (0, None)

    @property
    def is_source(self) -> bool:  # type: ignore[override]
        """Whether the layer brings data: it has neither bottoms nor blobs that learn."""
        return not self.param.bottom and not self.blobs

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        param = self.param.python_param
        for field in ("module", "layer"):
            if not getattr(param, field):
                raise self.error("must be given", f"python_param.{field}")
        self._code = f"{param.module}.{param.layer}"
        if not self.context.allow_python_layers:
            raise self.error(
                f"the definition wants to run code: the Python class {self._code}; if you trust "
                "it, give --allow-python-layers (from Python: allow_python_layers)"
            )
        user_class = load_class(param.module, param.layer, UserLayer)
        self._files = source_files(user_class)
        try:
            self.user: UserLayer = user_class(self.param)
        except Exception as error:
            raise explain(error, f"making {self._code}", self._files) from error
        self._bottoms = [Blob(shape) for shape in bottom_shapes]
        self._tops = [
            self._bottoms[index] if self._in_place(index) else Blob()
            for index in range(self.num_tops)
        ]
        self._call("setup", self._bottoms, self._tops)
        self._adopt_blobs()

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for blob, shape in zip(self._bottoms, bottom_shapes, strict=True):
            blob.reshape(*shape)
        self._call("reshape", self._bottoms, self._tops)
        return [top.shape for top in self._tops]

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        if not self.num_tops:
            self.run(bottoms)
            return []
        tops: Sequence[Tensor] = _Bridge.apply(self, len(bottoms), *bottoms, *self.blobs)
        return tops

    # Between tensors and the user's code --------------------------------------------------------

    def run(self, bottoms: Sequence[Tensor]) -> list[Tensor]:
        """The user's `reshape` and `forward`; copies of the tops."""
        on_gpu = self.context.device.type == "cuda"
        if on_gpu and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"the Python layer '{self.name}' runs on the host")
        in_place = {index for index in range(self.num_tops) if self._in_place(index)}
        for index, (blob, bottom) in enumerate(zip(self._bottoms, bottoms, strict=True)):
            values = bottom.detach()
            blob.hold(values.clone() if index in in_place else values.contiguous())
        like = bottoms[0] if bottoms else torch.empty(0, device=self.context.device)
        for top in self._tops:
            top.move(like.dtype, like.device)
        self._call("reshape", self._bottoms, self._tops)
        self._call("forward", self._bottoms, self._tops)
        return [top.data_tensor().clone() for top in self._tops]

    def remember(self, tops: Sequence[Tensor]) -> Pass:
        """What `gradients` needs of the forward pass that has just made `tops`."""
        # The tops detached, as a node of the graph that holds its own outputs is never freed.
        return Pass(
            [blob.memory for blob in self._bottoms],
            [top.detach() for top in tops],
            [blob.detach() for blob in self.blobs],
        )

    def gradients(
        self, past: Pass, diffs: Sequence[Tensor], propagate_down: list[bool]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of the bottoms and of the layer's blobs, by the user's `backward`."""
        for blob, memory in zip(self._bottoms, past.bottoms, strict=True):
            blob.hold(memory)
            blob.hold_diff(torch.zeros_like(memory.tensor()))
        for blob, values, diff in zip(self._tops, past.tops, diffs, strict=True):
            blob.hold(values)
            # A copy, as the user may write there, and an in-place layer does.
            blob.hold_diff(diff.detach().clone(memory_format=torch.contiguous_format))
        params = self._param_blobs()
        for param, values in zip(params, past.blobs, strict=True):
            param.lend(values, torch.zeros_like(values))
        try:
            self._call("backward", self._tops, propagate_down, self._bottoms)
        finally:
            param_diffs = [param.take_back() for param in params]
        return [blob.diff_tensor() for blob in self._bottoms], param_diffs

    def _call(self, method: str, *arguments: object) -> None:
        function = getattr(self.user, method, None)
        if function is None:
            raise self.error(f"{self._code} has no method '{method}'")
        try:
            function(*arguments)
        except Exception as error:
            what = f"{method} of {self._code}"
            raise explain(error, what, self._files).locate(layer=self.name) from error
        for blob in (*self._bottoms, *self._tops, *self.user.blobs):
            blob.data_tensor()  # brings to the device what was written on the host

    def _adopt_blobs(self) -> None:
        """Make parameters of the blobs that `setup` has added."""
        for index, blob in enumerate(self.user.blobs):
            name = self._next_name()
            tensor = blob.data_tensor().to(self.context.device)
            self.register_parameter(name, nn.Parameter(tensor))
            self.user.blobs[index] = ParamBlob(
                partial(self._blob, index), partial(getattr, self, name)
            )

    def _blob(self, index: int) -> Tensor:
        return self.blobs[index]

    def _param_blobs(self) -> list[ParamBlob]:
        return [blob for blob in self.user.blobs if isinstance(blob, ParamBlob)]

    def _in_place(self, index: int) -> bool:
        bottoms, tops = self.param.bottom, self.param.top
        return index < len(bottoms) and index < len(tops) and bottoms[index] == tops[index]


class _Bridge(torch.autograd.Function):
    """Hands the passes of a Python layer to its user's code, whose gradient is not autograd's."""

    @staticmethod
    def forward(ctx: Any, layer: Python, num_bottoms: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        tops = layer.run(tensors[:num_bottoms])
        ctx.layer = layer
        ctx.num_bottoms = num_bottoms
        ctx.past = layer.remember(tops)
        return tuple(tops)

    @staticmethod
    def backward(ctx: Any, *diffs: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        propagate_down = list(wanted[: ctx.num_bottoms])
        bottoms, params = ctx.layer.gradients(ctx.past, diffs, propagate_down)
        gradients = [
            gradient if is_wanted else None
            for gradient, is_wanted in zip([*bottoms, *params], wanted, strict=True)
        ]
        return None, None, *gradients
