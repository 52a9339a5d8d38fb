"""What layers with masks have in common: the blobs that they own, and how masks are renewed.

`DeviationMasks` is HolmesShuan's kind, one mask on the weight of a standard layer; `MagnitudeMasks`
is yiwenguo's, masks on weight and bias. When surgery happens is the solver's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor

from caffe_dns import kernels, mask_rules
from caffe_dns.layers.base import Layer, Shape
from caffe_dns.layers.products import Product
from caffe_dns.layers.weight_gradients import DeferredProduct, DeferredWeightGradients
from caffe_dns.proto.caffe_pb2 import (
    CConvolutionParameter,
    CInnerProductParameter,
    ConvolutionParameter,
    FillerParameter,
    InnerProductParameter,
)

if TYPE_CHECKING:
    from caffe_dns.kernels.products import Products

#: A layer, the index of one of its parameters, the parameter, and its mask.
_Entry = tuple["WeightedLayer", int, Tensor, Tensor | None]
#: What a layer makes of a parameter, or what computes it.
_Product = Tensor | Callable[[], Tensor]
TensorOrNone = TypeVar("TensorOrNone", Tensor, Tensor | None)


class WeightedLayer(Layer):
    """A layer with a weight, perhaps a bias, and perhaps masks on them."""

    keeps_type = True
    bias_term = True
    #: The axis of the top that the bias belongs to.
    output_axis: int
    #: How many channels the top has.
    num_output: int
    #: How many multiply-accumulates the layer takes for one image.
    products: int
    #: The weight's axis of input channels; None where no axis alone has them.
    input_axis: int | None = 1
    #: A faster `without_bias` for parameters that no longer change; see `sparse`.
    fixed_product: Callable[[Tensor], tuple[Tensor, Tensor | None]] | None = None
    #: Products of weight and bias, while masks are applied to all layers together.
    _ready: list[_Product | None] | None = None

    def add_weights(
        self,
        weight_shape: Shape,
        bias_shape: Shape,
        settings: ConvolutionParameter | InnerProductParameter,
    ) -> None:
        """Create the weight, the bias if `bias_term`, and the masks of the layer's kind."""
        self.bias_term = settings.bias_term
        self.add_parameter(weight_shape, settings.weight_filler, "weight")
        if self.bias_term:
            self.add_parameter(bias_shape, settings.bias_filler, "bias")
        self.add_masks()

    def add_masks(self) -> None:
        """Append the masks; a layer of this class has none."""

    def effective(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the forward pass uses them, masked, rounded to a type if given."""
        if self._ready is None:
            return self._masked(dtype)
        # Not earlier: autograd runs backward in reverse order of creation, and gradients for other
        # ranks would wait until backward is over.
        weight, bias = (
            parameter
            if parameter is None or product is None
            else mask_rules.stand_in(
                parameter, product if isinstance(product, Tensor) else product()
            )
            for parameter, product in zip(self.own(), self._ready, strict=True)
        )
        assert weight is not None
        return weight, bias

    def without_bias(self, bottom: Tensor) -> tuple[Tensor, Tensor | None]:
        """The top of one bottom before the bias is added, and the bias."""
        if self.fixed_product is not None:
            return self.fixed_product(bottom)
        weight, bias = self.effective(self.context.activations)
        return self.apply_to(bottom, weight, None), bias

    def apply_to(self, bottom: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The top of one bottom with these parameters."""
        raise NotImplementedError

    def apply_apart(
        self, product: Product | None, bottom: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor | None:
        """The same by `product` with deferred gradients; None if they are not deferred."""
        deferred = self.deferring(bottom.shape[0])
        if deferred is None or product is None:
            return None
        own_weight, own_bias = self.own()
        taken = bias if deferred.with_biases else None
        top: Tensor = DeferredProduct.apply(
            bottom,
            own_weight,
            own_bias if taken is not None else None,
            weight.detach(),
            taken.detach() if taken is not None else None,
            self.output_axis,
            product,
            deferred,
        )
        return top if bias is taken or bias is None else top + bias

    def deferring(self, num: int) -> DeferredWeightGradients | None:
        """What computes the gradients of weight and bias instead of autograd, for some images."""
        deferred = self.context.deferred_gradients
        own_weight, own_bias = self.own()
        learning = [p for p in (own_weight, own_bias) if p is not None and p.requires_grad]
        if deferred is None or not all(p.is_leaf for p in learning):
            return None
        return deferred if deferred.takes(own_weight, num * self.products) else None

    def _masked(self, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.own()
        return _rounded(weight, dtype), _rounded(bias, dtype)

    def own(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias without their masks."""
        blobs = self.blobs
        return blobs[0], blobs[1] if self.bias_term else None

    def mask_blobs(self) -> list[Tensor]:
        blobs = self.blobs
        return [blobs[index] for index in self.mask_indices]


class DeviationMasks(WeightedLayer):
    """A weight mask from mean and standard deviation. Blobs: [W, b, M] or [W, M]."""

    threshold = 0.0

    def mask_settings(self) -> ConvolutionParameter | InnerProductParameter:
        """The message with sparsity_term, weight_mask_filler and threshold."""
        raise NotImplementedError

    def wants_mask(self) -> bool:
        return self.mask_settings().sparsity_term

    def add_masks(self) -> None:
        settings = self.mask_settings()
        if not self.wants_mask():
            return
        if not self.context.surgery:
            # Definitions for the fork have a `param {}` for the mask.
            self.spare_param_specs = 1
            return
        self.threshold = settings.threshold
        shape = tuple(self.blobs[0].shape)
        filler = mask_filler(settings.weight_mask_filler)
        self.add_buffer(shape, filler, "weight_mask", is_mask=True)

    def _masked(self, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        if not self.mask_indices:
            return super()._masked(dtype)
        weight, bias = self.own()
        return mask_rules.masked(weight, self.mask_blobs()[0], dtype), _rounded(bias, dtype)

    @torch.no_grad()
    def renew_masks(self) -> Tensor:
        """Prune and splice by the current weights; returns how many were spliced back."""
        renewed = mask_rules.deviation_mask(self.blobs[0], self.threshold)
        return mask_rules.replace(self.mask_blobs()[0], renewed)

    def distances(self) -> list[Tensor]:
        """Per mask, the values that a threshold is compared with: distances from the mean."""
        weight = self.blobs[0].detach()
        return [(weight - weight.mean()).abs_()]

    def in_own_terms(self, distance: Tensor) -> Tensor:
        """Convert a distance to a `threshold`, in standard deviations."""
        return distance / self.blobs[0].detach().std(correction=0)

    def as_distance(self, threshold: float) -> Tensor:
        """The inverse of `in_own_terms`."""
        return threshold * self.blobs[0].detach().std(correction=0)


class MagnitudeMasks(WeightedLayer):
    """Masks by magnitude on weight and bias. Blobs: [W, b, Mw, Mb] or [W, Mw]."""

    #: Whether mu and sigma are those of the unmasked parameters, or of all.
    measures_masked: ClassVar[bool] = True

    moments: Tensor
    c_rate = 0.0

    def mask_settings(self) -> CConvolutionParameter | CInnerProductParameter:
        """The message with gamma, power, iter_stop, c_rate and the mask fillers."""
        raise NotImplementedError

    def add_masks(self) -> None:
        settings = self.mask_settings()
        self.c_rate = settings.c_rate
        weight, bias = self.own()
        filler = mask_filler(settings.weight_mask_filler)
        self.add_buffer(tuple(weight.shape), filler, "weight_mask", is_mask=True)
        if bias is not None:
            filler = mask_filler(settings.bias_mask_filler)
            self.add_buffer(tuple(bias.shape), filler, "bias_mask", is_mask=True)
        # mu and sigma; negative until they are measured. The solver keeps them in its state file.
        self.register_buffer("moments", torch.full((2,), -1.0, device=weight.device))

    def _masked(self, dtype: torch.dtype | None) -> tuple[Tensor, Tensor | None]:
        weight, bias = self.own()
        masks = self.mask_blobs()
        weight = mask_rules.masked(weight, masks[0], dtype)
        return weight, None if bias is None else mask_rules.masked(bias, masks[1], dtype)

    @torch.no_grad()
    def measure_moments(self) -> None:
        """Fix mu and sigma from the current parameters."""
        measured = self.effective() if self.measures_masked else self.own()
        self.moments.copy_(mask_rules.magnitude_moments([p for p in measured if p is not None]))

    @torch.no_grad()
    def renew_masks(self) -> Tensor:
        """Prune and splice by the current parameters; returns how many were spliced back."""
        came_back = [
            mask_rules.replace(
                mask, mask_rules.hysteresis_mask(parameter, mask, self.moments, self.c_rate)
            )
            for parameter, mask in zip(self.blobs, self.mask_blobs(), strict=False)
        ]
        return torch.stack(came_back).sum()

    def distances(self) -> list[Tensor]:
        """Per mask, the values that a threshold is compared with: the absolute parameters."""
        return [
            parameter.detach().abs()
            for parameter, _ in zip(self.blobs, self.mask_blobs(), strict=False)
        ]

    def in_own_terms(self, distance: Tensor) -> Tensor:
        """Convert a distance to a `c_rate`, in standard deviations above the mean magnitude."""
        mu, sigma = self.moments
        return (distance - mu) / sigma

    def as_distance(self, c_rate: float) -> Tensor:
        """The inverse of `in_own_terms`; 0 where that would be negative."""
        mu, sigma = self.moments
        return (mu + c_rate * sigma).clamp(min=0)


class MasksTogether:
    """The masks of some layers, applied to their parameters together.

    `dtype` is the type of the products, that of the parameters if None.
    """

    def __init__(self, layers: Sequence[WeightedLayer], dtype: torch.dtype | None) -> None:
        self.layers = layers
        self._dtype = dtype
        self._products: Products | None = None
        self._addresses: list[int] = []

    @contextmanager
    def applied(self, *, again: bool) -> Iterator[None]:
        """A context in which all masks are applied.

        With `again`, the next pass may overwrite the products.
        """
        learning = [layer for layer in self.layers if layer.fixed_product is None]
        entries = [entry for layer in learning for entry in self._entries(layer)]
        products = self._multiply(entries, again) if entries else []
        for (layer, index, _, _), product in zip(entries, products, strict=False):
            if layer._ready is None:
                layer._ready = [None, None]
            layer._ready[index] = product
        try:
            yield
        finally:
            for layer in self.layers:
                layer._ready = None

    def _entries(self, layer: WeightedLayer) -> Iterator[_Entry]:
        """The layer's parameters that have a mask or must be rounded: index, parameter and mask."""
        masks = layer.mask_blobs()
        for index, parameter in enumerate(layer.own()):
            mask = masks[index] if index < len(masks) else None
            if parameter is not None and (mask is not None or self._dtype is not None):
                yield layer, index, parameter, mask

    def _multiply(self, entries: Sequence[_Entry], again: bool) -> Sequence[_Product]:
        """The products; none if each layer should apply its masks itself."""
        parameters = [parameter for _, _, parameter, _ in entries]
        masks = [mask for _, _, _, mask in entries]
        if again and kernels.wanted(parameters[0].device) and self._find(parameters, masks):
            assert self._products is not None
            return self._products.run()
        if self._dtype is not None:
            return []
        known = [mask for mask in masks if mask is not None]
        return mask_rules.all_masked(parameters, known)

    def _find(self, parameters: Sequence[Tensor], masks: Sequence[Tensor | None]) -> bool:
        """Whether there is a kernel for these; creates one, except while a graph is captured."""
        pairs = list(zip(parameters, masks, strict=True))
        addresses = [tensor.data_ptr() for pair in pairs for tensor in pair if tensor is not None]
        if addresses != self._addresses:
            alike = all(mask is None or mask.stride() == p.stride() for p, mask in pairs)
            single = all(parameter.dtype == torch.float32 for parameter in parameters)
            if not alike or not single or kernels.is_capturing(parameters[0]):
                return False
            from caffe_dns.kernels.products import Products

            self._products = Products(parameters, masks, self._dtype or torch.float32)
            self._addresses = addresses
        return True


def _rounded(parameter: TensorOrNone, dtype: torch.dtype | None) -> TensorOrNone:
    return parameter if parameter is None or dtype is None else parameter.to(dtype)


def mask_filler(filler: FillerParameter) -> FillerParameter:
    """The filler of a mask: 1 where the definition gives no value (plain fillers start at 0)."""
    if filler.HasField("value") or filler.type != "constant":
        return filler
    filled = FillerParameter()
    filled.CopyFrom(filler)
    filled.value = 1
    return filled
