"""Where the layers of a net are in its file, for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from caffe_dns import log
from caffe_dns.errors import CaffeError
from caffe_dns.net.definition import filter_layers
from caffe_dns.proto.caffe_pb2 import NetParameter
from caffe_dns.proto.positions import Positions

if TYPE_CHECKING:
    from caffe_dns.proto.text import Parsed


class Places:
    """The places of layers by name. Of several of one name, those that the net has come first."""

    def __init__(
        self,
        param: NetParameter,
        kept: Iterable[int] = (),
        positions: Positions | None = None,
        file: str | None = None,
    ) -> None:
        self._file = file
        self._positions = positions
        there = set(kept)
        self._kept: dict[str, list[int]] = {}
        self._left_out: dict[str, list[int]] = {}
        for index, layer in enumerate(param.layer):
            layers = self._kept if index in there else self._left_out
            layers.setdefault(layer.name, []).append(index)

    @classmethod
    def of(cls, parsed: Parsed[NetParameter], param: NetParameter) -> Places:
        """Those of a definition that was read, for the state that `param`, a copy, is in."""
        with log.hushed:
            try:
                kept = filter_layers(param)[1]
            except CaffeError:
                kept = []
        return cls(param, kept, parsed.positions, parsed.file)

    def lines(self, name: str) -> list[int]:
        """The lines of the layers of this name that the net has."""
        return [line for index in self._kept.get(name, ()) if (line := self._line(index))]

    def field(self, name: str, field: str) -> tuple[int | None, int | None]:
        """Line and column of a field of the first layer of this name."""
        indices = self._kept.get(name)
        if indices is None or self._positions is None:
            return None, None
        return (
            self._positions.field_line(indices[0], field),
            self._positions.field_column(indices[0], field),
        )

    def locate(self, error: CaffeError) -> CaffeError:
        """The error itself, with the file, and the line of the setting or layer it is about."""
        if error.layer is not None:
            indices: Sequence[int] = self._kept.get(error.layer, ())
            indices = indices or self._left_out.get(error.layer, ())
            line = self._setting_line(indices[0], error.field or "") if indices else None
            if error.file in (None, self._file):
                error.locate(line=line)
            elif line is not None:  # about another file, a database say, that the layer reads
                error.read_by = f"{self._file}:{line}"
        return error.locate(file=self._file)

    def _setting_line(self, index: int, field: str) -> int | None:
        """The line of a setting, or of the settings that it is missing in, or of the layer.

        Of a field that is given several times, as bottoms are, nobody says which one it is.
        """
        group, _, name = field.partition(".")
        if self._positions is None or not name:
            return self._line(index)
        lines = (self._positions.field_line(index, path) for path in (field, group))
        return next((line for line in lines if line is not None), self._line(index))

    def _line(self, index: int) -> int | None:
        return None if self._positions is None else self._positions.layer_line(index)
