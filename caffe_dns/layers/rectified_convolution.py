"""A convolution fused with its bias and the ReLU after it, on a GPU.

Each would be a pass over the top. cuDNN has a kernel for all three, which is not always as fast as
its best one for the convolution alone; so both are tried, once for each shape, as cuDNN tries its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from caffe_dns import kernels
from caffe_dns.device.trial import Trials
from caffe_dns.layers.base import add_bias
from caffe_dns.layers.convolution import BaseConvolution
from caffe_dns.layers.half_precision import HalfGradients
from caffe_dns.layers.pointwise import Pointwise, is_channels_last
from caffe_dns.layers.products import Convolved, FewChannels, Produced
from caffe_dns.layers.weight_gradients import LARGE

if TYPE_CHECKING:
    from caffe_dns.kernels.bias_relu import Place

#: For which convolutions fusing is faster.
_trials = Trials()


@dataclass(frozen=True)
class Rectifying(HalfGradients):
    """A convolution with bias and ReLU by cuDNN; its gradients are of the convolution alone."""

    bias: Tensor

    def top(self, x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        top: Tensor = torch.cudnn_convolution_relu(
            x, w, self.bias, self.stride, self.pad, self.dilation, self.group
        )
        return top


def suits(layer: BaseConvolution) -> bool:
    """Whether the layer may be fused with a ReLU: it convolves images on a GPU and has a bias."""
    plain = layer.convolved is not None and not isinstance(layer.convolved, FewChannels)
    images = layer.num_spatial_axes == 2 and layer.strided is None and layer.fixed_product is None
    return plain and images and layer.bias_term and kernels.wanted(layer.context.device)


def rectified_convolution(layer: BaseConvolution, bottom: Tensor) -> Tensor:
    """relu(the top of a layer that `suits`)."""
    plain = layer.convolved
    weight, bias = layer.effective(layer.context.activations)
    assert plain is not None and bias is not None
    if _is_first(layer, plain, bottom, weight):
        from caffe_dns.kernels.first_convolution import FirstConvolution

        first: Tensor = FirstConvolution.apply(bottom, weight, bias, tuple(plain.pad))
        return first
    x = bottom.to(weight.dtype)
    if layer.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    product = Rectifying(plain.stride, plain.pad, plain.dilation, plain.group, bias.detach())
    matrices = isinstance(plain, Pointwise) and is_channels_last(x)
    if matrices or not _is_faster(product, plain, x, weight):
        return rectify(layer.apply_to(x, weight, None), bias)
    from caffe_dns.kernels.bias_relu import Rectified

    top = layer.apply_apart(product, x, weight, None)
    result: Tensor = Rectified.apply(
        Produced.apply(x, weight, product) if top is None else top, bias
    )
    return result


def rectify(top: Tensor, bias: Tensor, place: Place | None = None) -> Tensor:
    """relu(top + bias) for each channel; may overwrite `top`, or write to a place."""
    if not kernels.suit(top):
        return torch.relu(add_bias(top, bias))
    from caffe_dns.kernels.bias_relu import BiasedReLU

    result: Tensor = BiasedReLU.apply(top, bias, place)
    return result


def _is_first(layer: BaseConvolution, plain: Convolved, images: Tensor, weight: Tensor) -> bool:
    """Whether it is a large convolution of images with few channels and no gradient."""
    if images.requires_grad or {*plain.stride, *plain.dilation, plain.group} != {1}:
        return False
    if len(images) * layer.products < LARGE:
        return False
    from caffe_dns.kernels import first_convolution

    return first_convolution.fits(images, weight, (plain.pad[0], plain.pad[1]))


def _is_faster(product: Rectifying, plain: Convolved, x: Tensor, w: Tensor) -> bool:
    """Whether cuDNN with bias and ReLU is faster than cuDNN followed by our kernel."""
    x, w = x.detach(), w.detach()
    settings = (*plain.stride, *plain.pad, *plain.dilation, plain.group)
    exact = not torch.backends.cudnn.allow_tf32
    case = (x.device, x.shape, x.stride(), w.shape, w.stride(), x.dtype, exact, settings)

    def together() -> None:
        if not kernels.suit(product.top(x, w, None)):
            raise RuntimeError

    return _trials.is_faster(case, together, lambda: rectify(plain.top(x, w, None), product.bias))
