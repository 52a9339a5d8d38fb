"""Arithmetic that rounds the same on every processor, for runs that are held to recorded ones.

PyTorch's libraries choose their kernels by the processor, and kernels add in different orders. The
sums then differ in the last place: nothing, until two values of a pooling window lie so close that
the last place says which is the larger, and with it where the gradient goes. Within
`RoundedOnce`, every operation gives the same bits everywhere:

- what IEEE 754 fixes (one rounding for each element, or none) runs as it is;
- everything else runs in float64 and is rounded once to float32: what the order changes there is
  about 2^-29 of float32's last place, and lost in the rounding;
- on request, convolutions and inner products that are being trained add product after product,
  product and sum rounded each, in the order of the Caffe that recorded `tests/golden`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Each element is moved, compared, or computed with one rounding that IEEE 754 fixes; or it is
#: drawn, which happens to weights only before those of a file replace them.
_EXACT = """
_foreach_add _foreach_add_ _foreach_copy_ _foreach_div _foreach_div_ _foreach_mul _foreach_mul_
_foreach_sign _foreach_sub_ _foreach_zero_ _local_scalar_dense _to_copy _unsafe_view abs abs_ add
add_ alias all amax amin any argmax argsort as_strided bitwise_not bucketize cat ceil clamp clamp_
clamp_max clamp_min clone constant_pad_nd copy_ count_nonzero detach div div_ empty empty_like eq
eq_ equal expand fill_ flip floor full gather ge ge_ gt gt_ index index_fill index_select
is_same_size isfinite le lift_fresh logical_and logical_not lt lt_ masked_fill masked_fill_ max
max_pool2d max_pool2d_with_indices maximum minimum mul mul_ ne ne_ neg new_zeros normal_ ones
ones_like permute reciprocal relu relu_ repeat roll round scalar_tensor searchsorted select
select_backward set_ sign slice slice_backward sort split split_with_sizes squeeze stack sub sub_ t
threshold_backward topk transpose unbind unfold uniform_ unsqueeze view where zero_ zeros zeros_like
"""
#: What adds, multiplies and adds, or takes functions from a processor's library: also square roots,
#: which MKL approximates on some.
_ROUNDED = """
_foreach_addcdiv_ _foreach_addcmul_ _foreach_lerp_ _foreach_norm _foreach_pow _foreach_sqrt
_foreach_sqrt_ _fused_sgd_ _log_softmax _log_softmax_backward_data _softmax _softmax_backward_data
addcdiv addcdiv_ addcmul addcmul_ addmm avg_pool2d avg_pool2d_backward baddbmm bmm convolution
convolution_backward cumsum dot exp lerp lerp_ linalg_vector_norm log
max_pool2d_with_indices_backward mean mm mse_loss mv native_batch_norm native_batch_norm_backward
nll_loss_backward nll_loss_forward norm pow prod rsqrt sigmoid sigmoid_backward softmax sqrt sqrt_
square std sum tanh tanh_backward var var_mean
"""
#: Of these, the kernels for float32 compute with scalars as they are given.
DOUBLE_SCALARS = {"_fused_sgd_"}
EXACT, ROUNDED = set(_EXACT.split()), set(_ROUNDED.split())


class RoundedOnce(TorchDispatchMode):
    """While it is entered, float32 operations of this thread round the same on every processor.

    With `caffes_order`, convolutions and inner products in training take the recorded Caffe's
    order. Raises NotImplementedError for an operation of which it is not known how it rounds.
    """

    def __init__(self, *, caffes_order: bool = False) -> None:
        super().__init__()
        self.caffes_order = caffes_order

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; to make sure of it, PyTorch would load its compiler."""
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        # In passes without a backward pass, no gradient goes anywhere.
        if self.caffes_order and torch.is_grad_enabled() and name in IN_ORDER:
            return IN_ORDER[name](*args, **kwargs)
        if name in EXACT and kwargs.get("alpha", 1) == 1:
            return func(*args, **kwargs)
        if not any(map(_has_float32, (*args, *kwargs.values()))):
            return func(*args, **kwargs)
        if name in EXACT or name in ROUNDED:
            return rounded_once(func, args, kwargs)
        raise NotImplementedError(f"not known how {func} rounds; say so in tests/arithmetic.py")


def rounded_once(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """An operation in float64, its results rounded to float32; those in place go to their place."""
    widened = _widened_tensor if func.overloadpacket.__name__ in DOUBLE_SCALARS else _widened
    wide = [_mapped(widened, argument) for argument in args]
    result = func(*wide, **{key: _mapped(widened, value) for key, value in kwargs.items()})
    schema = func._schema
    for declared, narrow, computed in zip(schema.arguments, args, wide, strict=False):
        if declared.alias_info is not None and declared.alias_info.is_write:
            _assign(narrow, computed)
    in_place = schema.returns and schema.returns[0].alias_info is not None
    return args[0] if in_place else _mapped(_narrowed, result)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """A function of a value, or of each in a list or tuple: operators nest no deeper."""
    if isinstance(value, (list, tuple)):
        return type(value)([function(item) for item in value])
    return function(value)


def _has_float32(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_is_float32, value))
    return _is_float32(value)


def _is_float32(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _widened_tensor(value: Any) -> Any:
    return value.double() if _is_float32(value) else value


def _widened(value: Any) -> Any:
    if isinstance(value, float):
        return float(np.float32(value))  # as the kernels for float32 take their scalars
    return torch.float64 if value is torch.float32 else _widened_tensor(value)


def _narrowed(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float64 else value


def _assign(to: Any, value: Any) -> None:
    if isinstance(to, (list, tuple)):
        for each, computed in zip(to, value, strict=True):
            _assign(each, computed)
    elif isinstance(to, Tensor) and to is not value:
        to.copy_(value)


def matrix_product_in_order(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """bias + left [M, K] @ right [K, N], products added one by one, the bias last."""
    return _sum_in_order(left.t()[:, :, None], right[:, None, :]).add_(bias)


def convolution_in_order(
    bottom: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    pad: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_pad: Sequence[int],
    group: int,
) -> Tensor:
    """A convolution over two axes, the products of a window added one after the other."""
    assert not transposed and bias is None and bottom.dim() == 4
    tops = []
    for images, rows in zip(bottom.chunk(group, 1), weight.chunk(group), strict=True):
        columns = F.unfold(images, rows.shape[2:], tuple(dilation), tuple(pad), tuple(stride))
        rows = rows.reshape(len(rows), -1)
        tops.append(
            _sum_in_order(columns.transpose(0, 1)[:, :, None, :], rows.t()[:, None, :, None])
        )
    extents = [
        (size + 2 * pad[axis] - dilation[axis] * (kernel - 1) - 1) // stride[axis] + 1
        for axis, (size, kernel) in enumerate(zip(bottom.shape[2:], weight.shape[2:], strict=True))
    ]
    return torch.cat(tops, 1).reshape(len(bottom), len(weight), *extents)


def _sum_in_order(left: Tensor, right: Tensor) -> Tensor:
    """Sum of left[k] * right[k] over k, from 0 on; every product and every sum is rounded."""
    total = left[0] * right[0]
    product = torch.empty_like(total)
    for a, b in zip(left[1:], right[1:], strict=True):
        torch.mul(a, b, out=product)
        total += product
    return total


IN_ORDER: dict[str, Callable[..., Tensor]] = {
    "addmm": matrix_product_in_order,
    "convolution": convolution_in_order,
}
