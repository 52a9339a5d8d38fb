"""Net: runs the layers of a definition in order, and owns their parameters.

Autograd does backward. `building` makes the layers, `fusion` says which of them run as one. Reading
weights is in `caffe_dns.weights`, training in `caffe_dns.solver`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from caffe_dns import log
from caffe_dns.errors import BadValue, CaffeError
from caffe_dns.layers.base import Context, Layer, Shape
from caffe_dns.layers.checks import WrongLabel
from caffe_dns.layers.input import Input
from caffe_dns.net.building import build
from caffe_dns.net.definition import filter_layers, insert_splits, with_statistics_of
from caffe_dns.net.fused import FusedLayers
from caffe_dns.net.fusion import Fusion, plan_fusion
from caffe_dns.net.names import check_names
from caffe_dns.net.params import Param
from caffe_dns.net.places import Places
from caffe_dns.net.records import find_misfit, name_record
from caffe_dns.net.unknown_types import check_types
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import NetParameter, Phase
from caffe_dns.proto.positions import Positions
from caffe_dns.proto.text import to_text

Inputs = Mapping[str, Tensor | np.ndarray]


class PassObserver(Protocol):
    """Sees every layer during forward passes."""

    def before(self, step: Step, bottoms: list[Tensor]) -> list[Tensor]:
        """Called with a layer's bottoms; returns the bottoms that the layer gets."""
        ...

    def after(self, step: Step, tops: Sequence[Tensor]) -> None:
        """Called with a layer's tops."""
        ...


@dataclass(frozen=True)
class Work:
    """A unit of execution: one layer, or a group of fused layers that starts with `step`."""

    step: Step
    group: FusedLayers | None
    bottoms: list[str]
    tops: list[str]
    #: Whether the tops exist already: those of Input and data layers.
    given: bool
    #: The blobs that no later layer reads.
    last_uses: list[str]


class Net(nn.Module):
    """A network in the phase that `param.state` gives; `caffe_dns.load_net` makes one from files.

    For locations in error messages: `file` and `positions` as `proto.upgrade.read_net` gives them,
    or `places` if `param` is derived from a definition that was read. Raises CaffeError for
    anything wrong with the definition.
    """

    def __init__(
        self,
        param: NetParameter,
        context: Context | None = None,
        *,
        file: str | None = None,
        positions: Positions | None = None,
        places: Places | None = None,
    ) -> None:
        super().__init__()
        self.context = context or Context()
        self.phase = param.state.phase
        self.observer: PassObserver | None = None
        places = places or Places(param, (), positions, file)
        try:
            filtered, kept = filter_layers(param)
            if not kept:
                raise CaffeError(_no_layers(param))
            if positions is not None:
                places = Places(param, kept, positions, file)
            check_types(filtered, places)
            if not log.is_quiet():
                log.info(f"Initializing net from parameters: \n{to_text(filtered)}")
            self.param = insert_splits(with_statistics_of(filtered))
            self._graph = build(self.param, self.context)
            check_names(self._graph.steps, filtered, places)
        except CaffeError as error:
            raise places.locate(error) from None
        self.name = self.param.name
        self.steps = self._graph.steps
        self.table = self._graph.table
        self.loss_weights = self._graph.loss_weights
        self.outputs = self._graph.outputs
        #: The shapes of the inputs; in `blob_shapes`, an in-place layer may change them.
        self._input_shapes: dict[str, Shape] = {
            top: shape
            for step in self.steps
            if isinstance(step.layer, Input)
            for top, shape in zip(step.tops, step.layer.shapes, strict=True)
        }
        #: The tops of the Input layers, in the definition's order.
        self.inputs = [*self._input_shapes]
        self.blob_shapes = self._graph.blob_shapes
        self._sources = [step for step in self.steps if step.layer.is_source]
        self.fusion = plan_fusion(self.steps, self.context)
        self._freeze()
        self._register_layers()
        #: The first parameter, whose type the inputs get. In a list, because modules register
        #: parameters that are attributes.
        self._first_parameter = [*islice(self.parameters(), 1)]
        log.info("Network initialization done.")

    # Building -----------------------------------------------------------------------------------

    def _register_layers(self) -> None:
        """Register the layers as children of this module, under their names.

        Dots, which names of modules cannot have, become underscores. A name that is taken, such as
        `loss`, gets an underscore at its end, and then a number.
        """
        tried: Counter[str] = Counter()
        for step in self.steps:
            name = given = step.layer.name.replace(".", "_") or "_"
            while hasattr(self, name):
                tried[given] += 1
                name = f"{given}_{tried[given]}" if tried[given] > 1 else f"{given}_"
            self.add_module(name, step.layer)

    def _freeze(self) -> None:
        """Parameters that never learn get no gradient, unless the definition forces backward."""
        for param in self.table.owned:
            tensor = param.tensor
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(param.lr_mult != 0 or self.param.force_backward)

    @property
    def fusion(self) -> Fusion:
        """Which layers run as one."""
        return self._fusion

    @fusion.setter
    def fusion(self, fusion: Fusion) -> None:
        self._fusion = fusion
        self._works = {
            inner: [work for work in self._plan(groups) if not work.given]
            for inner, groups in fusion.layers.items()
        }
        self._works_observed = list(self._plan({}))

    def _plan(self, groups: Mapping[Layer, FusedLayers]) -> Iterator[Work]:
        """What runs, in order, with these groups of layers fused, by their first layer."""
        steps = zip(self.steps, self._graph.last_uses, strict=True)
        for step, last_uses in steps:
            group = groups.get(step.layer)
            if group is None:
                given = step.layer.brings_data
                yield Work(step, None, step.bottoms, step.tops, given, last_uses)
            else:
                no_longer_read = [*last_uses]
                for _ in group.steps[1:]:
                    no_longer_read += next(steps)[1]
                tops = group.steps[-1].tops
                yield Work(step, group, group.bottoms, tops, False, no_longer_read)

    # Looking ------------------------------------------------------------------------------------

    @property
    def params(self) -> dict[str, list[Tensor]]:
        """Caffe's blobs in Caffe's order by layer name, for layers that have any."""
        return {step.layer.name: step.layer.blobs for step in self.steps if step.layer.blobs}

    @property
    def learnable_params(self) -> list[Param]:
        """All blobs, shared ones once, including masks and running statistics."""
        return self.table.owned

    def layer(self, name: str) -> Layer | None:
        """The first layer of this name."""
        return next((step.layer for step in self.steps if step.layer.name == name), None)

    # Running ------------------------------------------------------------------------------------

    def forward(
        self, inputs: Inputs | Tensor | np.ndarray | None = None, /, **named: Tensor | np.ndarray
    ) -> dict[str, Tensor]:
        """Run all layers; returns every blob by name, as in-place layers leave it.

        Inputs are the tops of the Input layers: by name, in a mapping or as keywords, or a single
        array where there is one. Data layers read their next batch. Raises CaffeError when an input
        is missing or unknown, and BadValue for a single array where there are several inputs.
        """
        given = self._take_inputs(self._by_name(inputs, named))
        return self.compute({**given, **self.read_sources()})

    def read_sources(self, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The next batch of every data layer, by blob.

        A layer may write its batch into the memory of an earlier one, `into`.
        """
        blobs: dict[str, Tensor] = {}
        for step in self._sources:
            if into is not None:
                step.layer.offer([into[blob] for blob in step.tops])
            self._run_step(step, blobs)
        return blobs

    def given_away(self) -> set[str]:
        """The blobs of `read_sources` that the caller may overwrite."""
        away = (step.tops for step in self._sources if step.layer.gives_away)
        return {blob for tops in away for blob in tops}

    def compute(self, given: Mapping[str, Tensor], *, inner: bool = True) -> dict[str, Tensor]:
        """Run all layers except those whose tops are in `given`: Input and data layers.

        Without `inner`, blobs that are neither outputs nor losses are dropped as soon as no later
        layer reads them.
        """
        masks = self.fusion.masks
        if masks is None:
            return self._compute(dict(given), inner)
        with masks.applied(again=not inner):
            return self._compute(dict(given), inner)

    def _compute(self, blobs: dict[str, Tensor], inner: bool) -> dict[str, Tensor]:
        observer = self.observer  # which sees every layer's top
        for work in self._works[inner] if observer is None else self._works_observed:
            self._do(work, blobs)
            if observer is not None:
                observer.after(work.step, [blobs[blob] for blob in work.step.tops])
            if not inner:
                for blob in work.last_uses:
                    blobs.pop(blob, None)
        if self.context.counts_passes:
            self.context.passes += 1
        return blobs

    def _do(self, work: Work, blobs: dict[str, Tensor]) -> None:
        try:
            if work.group is not None:
                tops = work.group.run(*[blobs[blob] for blob in work.bottoms])
                blobs.update(zip(work.tops, tops, strict=True))
            elif not work.given:
                self._run_step(work.step, blobs)
        except CaffeError:
            raise
        except RuntimeError as error:
            if misfit := find_misfit(work.group.steps if work.group else [work.step], blobs):
                raise misfit from error
            raise

    def reshape(self, inputs: Mapping[str, Shape]) -> None:
        """Fit `blob_shapes` to inputs of these shapes (`Net::Reshape`).

        `forward` calls it if needed. Raises CaffeError if a layer does not accept its new bottoms.
        """
        shapes = dict(inputs)
        for step in self.steps:
            if step.layer.is_input:
                continue
            tops = step.layer.top_shapes([shapes[blob] for blob in step.bottoms])
            shapes.update(zip(step.tops, tops, strict=True))
        self.blob_shapes = shapes
        self._input_shapes = dict(inputs)

    def _run_step(self, step: Step, blobs: dict[str, Tensor]) -> None:
        bottoms = self._gather(step, blobs)
        if self.observer is not None:
            bottoms = self.observer.before(step, bottoms)
        activations = self.context.activations
        if activations is not None and not step.layer.keeps_type:
            bottoms = [b.float() if b.dtype == activations else b for b in bottoms]
        try:
            tops = step.layer(*bottoms)
        except WrongLabel as error:
            raise name_record(self.steps, step, error) from None
        if isinstance(tops, Tensor):
            tops = (tops,)
        blobs.update(zip(step.tops, tops, strict=True))

    def loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """The sum of all elements of the tops with a loss weight, each times its weight."""
        total: Tensor | None = None
        for blob, weight in self.loss_weights.items():
            top = blobs[blob]
            if blob in self._graph.overwritten_losses:
                top = top.detach()
            term = top if top.dim() == 0 else top.sum()
            if weight != 1:
                term = term * weight
            total = term if total is None else total + term
        return torch.zeros((), device=self.context.device) if total is None else total

    def close(self) -> None:
        """Stop the layers' threads and finish their files."""
        with ExitStack() as stack:  # which closes the other layers even if one fails
            for step in self.steps:
                close = getattr(step.layer, "close", None)
                if close is not None:
                    stack.callback(close)

    def _gather(self, step: Step, blobs: Mapping[str, Tensor]) -> list[Tensor]:
        if not step.layer.param.propagate_down:
            return [blobs[blob] for blob in step.bottoms]
        return [
            blobs[blob] if wanted else blobs[blob].detach()
            for blob, wanted in zip(step.bottoms, step.layer.param.propagate_down, strict=True)
        ]

    def _by_name(self, inputs: Inputs | Tensor | np.ndarray | None, named: Inputs) -> Inputs:
        if inputs is None:
            return named
        if isinstance(inputs, Mapping):
            return {**inputs, **named}
        expected = [blob for blob in self.inputs if blob not in named]
        if len(expected) == 1 and isinstance(inputs, Tensor | np.ndarray):
            return {expected[0]: inputs, **named}
        example = ", ".join(f"'{blob}': ..." for blob in self.inputs)
        raise BadValue(f"inputs come by name, {{{example}}} here, not as a {type(inputs).__name__}")

    def _take_inputs(self, inputs: Inputs) -> dict[str, Tensor]:
        if len(inputs) != len(self.inputs):
            self._refuse(inputs)
        blobs: dict[str, Tensor] = {}
        fits = True
        exporting = torch.compiler.is_exporting()  # symbolic sizes equal no number
        for blob in self.inputs:
            if blob not in inputs:
                self._refuse(inputs)
            blobs[blob] = self._to_blob(inputs[blob])
            fits = fits and (exporting or blobs[blob].shape == self._input_shapes[blob])
        if not fits:
            self.reshape({blob: tuple(value.shape) for blob, value in blobs.items()})
        return blobs

    def _refuse(self, inputs: Inputs) -> NoReturn:
        unknown = sorted(set(inputs) - set(self.inputs))
        missing = [blob for blob in self.inputs if blob not in inputs]
        what = f"unknown input {unknown[0]!r}" if unknown else f"missing input {missing[0]!r}"
        raise CaffeError(f"{what}; the inputs of this net are {', '.join(self.inputs) or 'none'}")

    def _to_blob(self, value: Tensor | np.ndarray) -> Tensor:
        """`value` on the net's device, in the number format of its parameters."""
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
        wanted = tensor.dtype if tensor.is_floating_point() else torch.float32
        for parameter in self._first_parameter:
            wanted = parameter.dtype
        if tensor.dtype is wanted and tensor.device == self.context.device:
            return tensor
        return tensor.to(self.context.device, wanted)


def _no_layers(param: NetParameter) -> str:
    if not param.layer:
        return "is not a net definition: it has no layers"
    return f"no layer is left for the phase {Phase.Name(param.state.phase)} and its stages"
