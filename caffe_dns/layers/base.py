"""What every layer is: the contract between Net and the layer families.

A layer is built in three steps. `__init__` stores its settings. `setup(bottom_shapes)` checks the
number of bottoms and tops, lets `build` create the blobs, and returns the top shapes that `reshape`
computes; for other bottoms, `top_shapes` computes them again. `forward(*bottoms)` then maps bottom
tensors to top tensors; autograd does backward. All blobs are float32 (float64 in tests), labels
too, as in Caffe.

This module knows nothing of nets, files or solvers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from caffe_dns import rng
from caffe_dns.errors import CaffeError, nearest
from caffe_dns.fillers import fill
from caffe_dns.layers.weight_gradients import DeferredWeightGradients
from caffe_dns.proto.caffe_pb2 import TRAIN, FillerParameter, LayerParameter
from caffe_dns.registry import Registry

Shape = tuple[int, ...]

#: Axes and numbers of the largest blobs (`kMaxBlobAxes` and `Blob::Reshape`, blob.hpp and .cpp).
_MOST_AXES, _MOST_NUMBERS = 32, 2**31 - 1

#: For `Layer.needs_numbers`.
NO_BOTTOM, FIRST_BOTTOM, ALL_BOTTOMS = slice(0), slice(1), slice(None)

#: Layer classes by the type that a definition names.
layer_types: Registry[type[Layer]] = Registry("layer type")


@dataclass
class Context:
    """What the layers of one net share: device, random draws, and what is allowed."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    #: How many of the ranks are on this host.
    local_size: int = 1
    #: Whether layers of the standard types own masks (HolmesShuan's kind of surgery).
    surgery: bool = True
    allow_python_layers: bool = False
    #: How many undecodable records a Data layer skips.
    skip_bad_records: int = 0
    #: Whether Data layers leave JPEGs to the GPU.
    decode_on_gpu: bool = False
    #: The type of activations where it is not that of the parameters; see `Layer.keeps_type`.
    activations: torch.dtype | None = None
    #: The counter for random draws: forward passes, or iterations if a solver trains.
    passes: int = 0
    #: Whether the net increments `passes` in each forward pass; a solver sets `passes` itself.
    counts_passes: bool = True
    #: Computes weight gradients while backward goes on; None leaves them to autograd.
    deferred_gradients: DeferredWeightGradients | None = None
    _generator: torch.Generator | None = None
    _seeded_for: tuple[int, int] | None = None

    def generator(self) -> torch.Generator:
        """The generator of the current pass, seeded from (seed, passes, rank) at its first use.

        Layers draw from it one after the other. It stays the same object from pass to pass, so
        that a CUDA graph that has captured its use can be replayed with new draws.
        """
        if self._generator is None:
            self._generator = torch.Generator(self.device)
        if self._seeded_for != (self.seed, self.passes):
            self._generator.manual_seed(rng.key(self.seed, "forward", self.passes, self.rank))
            self._seeded_for = (self.seed, self.passes)
        return self._generator

    def renew_generator(self) -> None:
        """Use a new generator with the same draws: a failed capture makes PyTorch's unusable."""
        self._generator = self._seeded_for = None

    @property
    def draws(self) -> bool:
        """Whether a layer has drawn from the generator yet."""
        return self._generator is not None


class Layer(nn.Module):
    """One layer of a net. Subclasses give `reshape` and `forward`, and `build` if they have blobs.

    `blobs` is Caffe's list, in Caffe's order: learnable parameters, running statistics and masks.
    """

    #: Whether the layer accepts bottoms of lower precision than float32; other layers are given
    #: float32.
    keeps_type: ClassVar[bool] = False
    #: Minimum and maximum number of bottoms and tops (`include/caffe/layer.hpp`); None: no maximum.
    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    #: As many tops as bottoms (`EqualNumBottomTopBlobs`).
    equal_bottoms_and_tops: ClassVar[bool] = False
    #: Whether tops that the definition omits are made anyway (loss layers).
    auto_tops: ClassVar[bool] = False
    #: Whether the first top has loss weight 1 unless the definition gives one.
    is_loss: ClassVar[bool] = False
    #: Bottoms that never get a gradient even under force_backward (labels).
    no_force_backward: ClassVar[tuple[int, ...]] = ()
    #: The bottoms that must not be empty, for which PyTorch has no result.
    needs_numbers: ClassVar[slice] = NO_BOTTOM
    #: Whether the tops come from outside the net: a database, a program, a filler.
    is_source: ClassVar[bool] = False
    #: Whether the caller of the net gives the tops: `forward` is never called.
    is_input: ClassVar[bool] = False
    #: Whether the caller may overwrite a source's tops: it keeps no reference to them.
    gives_away: ClassVar[bool] = False

    def __init__(self, param: LayerParameter, context: Context) -> None:
        super().__init__()
        self.param = param
        self.context = context
        self._blob_names: list[str] = []
        self._views: dict[int, Shape] = {}
        self._has_extension = False
        #: Indices into `blobs` of the masks, which no solver updates.
        self.mask_indices: tuple[int, ...] = ()
        #: Indices into `blobs` of those that gradient steps never change, whatever `param {}` says.
        self.fixed_blobs: tuple[int, ...] = ()
        #: How many more `param {}` than blobs the definition may have.
        self.spare_param_specs = 0
        self.train(param.phase == TRAIN)

    @property
    def name(self) -> str:
        return self.param.name

    @property
    def type(self) -> str:  # type: ignore[override]
        return self.param.type

    # Building -----------------------------------------------------------------------------------

    def setup(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Check the counts, create the blobs, and return the shapes of the tops.

        Raises CaffeError, with the layer's name, for errors in the definition.
        """
        self._check_counts(len(bottom_shapes))
        self._check_numbers(bottom_shapes)
        try:
            self.build(bottom_shapes)
        except CaffeError as error:
            raise error.locate(layer=self.name) from None
        if self.param.HasField("extension_param") and not self._has_extension:
            raise self.error(f"type {self.type} takes none", "extension_param")
        return self.top_shapes(bottom_shapes)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """The top shapes that `reshape` gives, checked; a batch may be empty.

        Raises CaffeError, with the layer's name, for bottoms that do not fit.
        """
        self._check_numbers(bottom_shapes, first_axis=1)
        try:
            tops = self.reshape(bottom_shapes)
            for shape in tops:
                check_shape(shape)
        except CaffeError as error:
            raise error.locate(layer=self.name) from None
        return tops

    def build(self, bottom_shapes: Sequence[Shape]) -> None:
        """Read the settings and create the blobs (`LayerSetUp`). Called once."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """The top shapes for these bottom shapes; raises CaffeError when they do not fit."""
        raise NotImplementedError

    def forward(self, *bottoms: Tensor) -> Tensor | Sequence[Tensor]:
        """The tops, one tensor or several, in the definition's order. Never changes a bottom."""
        raise NotImplementedError

    def offer(self, memory: Sequence[Tensor]) -> None:
        """Offer tensors like the tops, which a source may write its next tops into, once."""

    def error(self, message: str, field: str | None = None) -> CaffeError:
        """An error about this layer, to be raised by the caller."""
        return CaffeError(message, layer=self.name, field=field)

    @property
    def brings_data(self) -> bool:
        """Whether the tops exist before any layer of the net has run."""
        return self.is_source or self.is_input

    @property
    def num_tops(self) -> int:
        """How many tops `forward` has to return: those named, but at least the minimum."""
        named = len(self.param.top)
        return max(named, self.tops[0]) if self.auto_tops else named

    def _check_counts(self, num_bottoms: int) -> None:
        self._check_count("bottom", num_bottoms, self.bottoms)
        self._check_count("top", self.num_tops, self.tops)
        if self.equal_bottoms_and_tops and num_bottoms != self.num_tops:
            raise self.error(
                f"type {self.type} makes as many tops as it has bottoms, "
                f"but there are {num_bottoms} bottoms and {self.num_tops} tops"
            )

    def _check_count(self, kind: str, count: int, limits: tuple[int, int | None]) -> None:
        least, most = limits
        if count >= least and (most is None or count <= most):
            return
        if most is None:
            wanted = f"at least {least}"
        else:
            wanted = str(least) if least == most else f"{least} to {most}"
        raise self.error(
            f"type {self.type} takes {wanted} {kind} blob(s), the definition gives {count}"
        )

    def _check_numbers(self, bottom_shapes: Sequence[Shape], first_axis: int = 0) -> None:
        for index, shape in enumerate(bottom_shapes[self.needs_numbers]):
            if not count(shape[first_axis:]):
                what = f"bottom {index} has no numbers in it: {shape_text(shape)}"
                raise self.error(what, "bottom")

    # Blobs --------------------------------------------------------------------------------------

    @property
    def blobs(self) -> list[Tensor]:
        """The layer's arrays in Caffe's order."""
        tensors = [getattr(self, name) for name in self._blob_names]
        for index, shape in self._views.items():
            tensors[index] = tensors[index].reshape(shape)
        return tensors

    def add_parameter(self, shape: Shape, filler: FillerParameter, name: str = "") -> None:
        """Append a learnable blob with initial values from `filler`.

        In the net's state_dict it is called LAYER.NAME, or LAYER.blobN without a name.
        """
        values = self._filled(shape, filler)
        self.register_parameter(self._next_name(name), nn.Parameter(values))

    def add_buffer(
        self, shape: Shape, filler: FillerParameter, name: str = "", *, is_mask: bool = False
    ) -> None:
        """Append a blob without a gradient: running statistics, or a mask."""
        if is_mask:
            self.mask_indices = (*self.mask_indices, len(self._blob_names))
        values = self._filled(shape, filler)
        self.register_buffer(self._next_name(name), values)

    def share_blob(self, index: int, owner: Layer, owner_index: int) -> None:
        """Use another layer's blob, viewed in this layer's own shape if the two differ."""
        shape = tuple(self.blobs[index].shape)
        tensor = getattr(owner, owner._blob_names[owner_index])
        setattr(self, self._blob_names[index], tensor)
        if tuple(tensor.shape) != shape:
            self._views[index] = shape

    def share_data(self, index: int, owner: Layer, owner_index: int) -> None:
        """Use the memory of a blob of another net; gradients stay apart (`Blob::ShareData`).

        What is no parameter is the other layer's altogether.
        """
        mine = getattr(self, self._blob_names[index])
        theirs = getattr(owner, owner._blob_names[owner_index])
        if isinstance(mine, nn.Parameter) and mine.shape == theirs.shape:
            mine.data = theirs.data
        else:
            self.share_blob(index, owner, owner_index)

    def see_parameter_as(self, index: int, tensor: Tensor) -> None:
        """From now on, use this tensor as blob `index`, such as a view of the parameter."""
        # Not by setattr, which accepts only leaves.
        self._parameters[self._blob_names[index]] = tensor  # type: ignore[assignment]

    def _next_name(self, name: str = "") -> str:
        self._blob_names.append(name or f"blob{len(self._blob_names)}")
        return self._blob_names[-1]

    def _filled(self, shape: Shape, filler: FillerParameter) -> Tensor:
        check_shape(shape)
        stream = f"fill/{self.name}/{len(self._blob_names)}"
        generator = rng.torch_generator(self.context.seed, stream)
        return fill(shape, filler, generator).to(self.context.device)

    # Help for subclasses ------------------------------------------------------------------------

    def settings(self, **defaults: Any) -> dict[str, Any]:
        """The layer's `extension_param { settings }`, a JSON object, over these defaults.

        For layer types of plugins. Raises CaffeError for names that are not in `defaults` and for
        values of another type than the default.
        """
        self._has_extension = True
        text = self.param.extension_param.settings
        try:
            given = json.loads(text) if text else {}
        except ValueError as error:
            raise self._settings_error(f"is not JSON: {error}") from None
        if not isinstance(given, dict):
            raise self._settings_error(f"a JSON object would be right, not {text}")
        for name, value in given.items():
            if name not in defaults:
                known = ", ".join(defaults)
                raise self._settings_error(
                    f"'{name}' is unknown{nearest(name, list(defaults))}; known: {known}"
                )
            kind = type(defaults[name])
            if isinstance(value, bool) != (kind is bool) or not isinstance(
                value, (int, float) if kind is float else kind
            ):
                raise self._settings_error(f"'{name}' takes a {kind.__name__}, not {value!r}")
        return {**defaults, **given}

    def _settings_error(self, message: str) -> CaffeError:
        return self.error(message, "extension_param.settings")

    def generator(self) -> torch.Generator:
        """The generator for draws in this forward pass, different on each rank."""
        return self.context.generator()

    def axis(self, index: int, num_axes: int, field: str = "axis") -> int:
        """`index` from the front; negative ones count from the back (`CanonicalAxisIndex`)."""
        if not -num_axes <= index < num_axes:
            raise self.error(f"axis {index} is out of range for a blob with {num_axes} axes", field)
        return index % num_axes


class SameShape(Layer):
    """A layer with one bottom and one top of the same shape."""

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(bottom_shapes[0])]


class LossLayer(Layer):
    """A layer whose first top is a loss, made even if the definition names no top."""

    bottoms = (2, 2)
    auto_tops = True
    is_loss = True
    no_force_backward: ClassVar[tuple[int, ...]] = (1,)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if not bottom_shapes[0] or bottom_shapes[0][:1] != bottom_shapes[1][:1]:
            raise self.error(
                f"the data and label blobs differ in their first axis: "
                f"{shape_text(bottom_shapes[0])} and {shape_text(bottom_shapes[1])}"
            )
        return [()]


def add_bias(top: Tensor, bias: Tensor, axis: int = 1) -> Tensor:
    """The top plus one bias for each index along `axis`, in the top's type."""
    return top + bias.to(top.dtype).view(-1, *[1] * (top.dim() - axis - 1))


def count(shape: Shape) -> int:
    """The number of elements of a blob of this shape."""
    return math.prod(shape)


def check_shape(shape: Shape, what: str = "a blob") -> None:
    """Raise CaffeError for a shape that no blob can have, before memory is allocated."""
    if len(shape) > _MOST_AXES:
        raise CaffeError(f"{what} would have {len(shape)} axes; {_MOST_AXES} are the most")
    # Strides are counted as if extents of 0 were 1.
    if min(shape, default=0) < 0 or math.prod(filter(None, shape)) > _MOST_NUMBERS:
        extents = "x".join(map(str, shape))
        raise CaffeError(f"{what} would be of {extents} numbers; {_MOST_NUMBERS} are the most")


def shape_text(shape: Shape) -> str:
    """A shape as Caffe prints it: `32 1 28 28 (25088)` (`Blob::shape_string`)."""
    return "".join(f"{extent} " for extent in shape) + f"({count(shape)})"
