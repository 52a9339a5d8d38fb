"""DummyData: blobs from fillers, for tests and timing (`dummy_data_layer.cpp`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import Generator, Tensor

from caffe_dns.fillers import fill
from caffe_dns.layers.base import Layer, Shape, layer_types
from caffe_dns.proto.caffe_pb2 import FillerParameter

Entry = TypeVar("Entry")


@layer_types.register("DummyData")
class DummyData(Layer):
    """Constant tops are filled once, all others anew at each forward pass."""

    bottoms = (0, 0)
    tops = (1, None)
    is_source = True
    gives_away = True

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        fillers = list(self.param.dummy_data_param.data_filler) or [FillerParameter(value=0)]
        self._fillers = self._one_for_each_top("data_filler", fillers)
        self._shapes = self._one_for_each_top(*self._given_shapes())
        self._constants: dict[int, Tensor] = {}

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return list(self._shapes)

    def forward(self, *bottoms: Tensor) -> Sequence[Tensor]:
        generator = self.generator()
        with self.context.device:  # where fillers then make their tensors
            return [self._top(index, generator) for index in range(self.num_tops)]

    def _top(self, index: int, generator: Generator) -> Tensor:
        if index in self._constants:
            return self._constants[index]
        filler = self._fillers[index]
        top = fill(self._shapes[index], filler, generator)
        if filler.type == "constant":
            self._constants[index] = top
        return top

    def _given_shapes(self) -> tuple[str, list[Shape]]:
        """The shapes, and the field they come from: `shape`, or the four fields older than it."""
        param = self.param.dummy_data_param
        sizes = [list(param.num), list(param.channels), list(param.height), list(param.width)]
        if not any(sizes):
            return "shape", [tuple(shape.dim) for shape in param.shape]
        if param.shape:
            raise self.error(
                "is given together with num, channels, height or width; give one of both",
                "dummy_data_param.shape",
            )
        names = ("num", "channels", "height", "width")
        columns = [self._one_for_each_top(*pair) for pair in zip(names, sizes, strict=True)]
        return "num", list(zip(*columns, strict=True))

    def _one_for_each_top(self, field: str, given: Sequence[Entry]) -> list[Entry]:
        """`given` as it stands, or its only entry for every top."""
        if len(given) not in (1, self.num_tops):
            raise self.error(
                f"is given {len(given)} times for {self.num_tops} top(s); "
                f"give it once, or once for each top",
                f"dummy_data_param.{field}",
            )
        return list(given) * (self.num_tops if len(given) == 1 else 1)
