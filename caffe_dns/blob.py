"""Blobs as programs see them: data and diff of one shape, as writable numpy arrays.

Python layers and the pycaffe interface hand these out. The net itself runs on tensors; a blob keeps
its tensors and its arrays in step. Nothing here knows about layers or nets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from caffe_dns.errors import CaffeError

Shape = tuple[int, ...]
LEGACY_AXES = 4


class SyncedMemory:
    """A tensor and an array with the same values (`syncedmem.cpp`).

    On a CPU they are the same memory. On a GPU, `array` copies the values to the host, and `tensor`
    copies back what was written there; after the net has run, `array` must be read again.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()
        self._host: np.ndarray | None = None
        self._host_is_newer = False

    @property
    def shape(self) -> Shape:
        return tuple(self._tensor.shape)

    def tensor(self) -> Tensor:
        """The values on the device."""
        if self._host_is_newer:
            assert self._host is not None
            # Through .data, so that autograd does not count it as a change of saved tensors: most
            # arrays are only read.
            self._tensor.data.copy_(torch.from_numpy(self._host))
            self._host_is_newer = False
        return self._tensor

    def array(self) -> np.ndarray:
        """The values on the host, for reading and writing."""
        if self._tensor.device.type == "cpu":
            return self._tensor.numpy()
        if not self._host_is_newer:
            values = self._tensor.cpu().numpy()
            if self._host is None:
                self._host = values
            else:
                self._host[...] = values
            self._host_is_newer = True
        assert self._host is not None
        return self._host

    def overwrite(self, values: Tensor) -> None:
        """Copy `values` of the same shape; they may be this very memory."""
        self._host_is_newer = False
        if not self.wraps(values):
            self._tensor.data.copy_(values.detach())

    def resembles(self, other: SyncedMemory) -> bool:
        """Whether both have the same shape, type and device."""
        return self.fits(other._tensor)

    def like(self, value: float) -> SyncedMemory:
        """New memory of the same shape, type and device, filled with `value`."""
        return SyncedMemory(torch.full_like(self._tensor, value))

    def fits(self, values: Tensor) -> bool:
        """Whether `values` can be copied without conversion."""
        mine = self._tensor
        return (mine.shape, mine.dtype, mine.device) == (values.shape, values.dtype, values.device)

    def wraps(self, tensor: Tensor) -> bool:
        """Whether `tensor` is this memory, in the same shape."""
        return self.fits(tensor) and self._tensor.data_ptr() == tensor.data_ptr()


class Blob:
    """`data` and `diff` of one shape, initially zero (`Blob` of pycaffe).

    `diff_value` is what new diffs are filled with: a top's weight in the loss.
    """

    def __init__(
        self,
        shape: Shape = (),
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
        diff_value: float = 0.0,
    ) -> None:
        self._data = SyncedMemory(torch.zeros(shape, dtype=dtype, device=device))
        self._diff: SyncedMemory | None = None
        self._diff_value = diff_value

    # As pycaffe has it --------------------------------------------------------------------------

    @property
    def data(self) -> np.ndarray:
        """The values. Writing to the array changes the blob."""
        return self._data_memory().array()

    @property
    def diff(self) -> np.ndarray:
        """The gradient. Writing to the array changes the blob."""
        return self._diff_memory().array()

    @property
    def shape(self) -> Shape:
        return self._data_memory().shape

    @property
    def count(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def num(self) -> int:
        return self._legacy_extent(0)

    @property
    def channels(self) -> int:
        return self._legacy_extent(1)

    @property
    def height(self) -> int:
        return self._legacy_extent(2)

    @property
    def width(self) -> int:
        return self._legacy_extent(3)

    def reshape(self, *shape: int) -> None:
        """Change the shape: values are kept if their number is the same, else they become zeros."""
        wanted = tuple(int(extent) for extent in shape)
        if any(extent < 0 for extent in wanted):
            raise CaffeError(f"a blob cannot have the shape {wanted}: an extent is negative")
        if wanted == self.shape:
            return
        old = self._data_memory().tensor()
        if int(np.prod(wanted, dtype=np.int64)) == self.count:
            self._data = SyncedMemory(old.reshape(wanted))
        else:
            self._data = SyncedMemory(old.new_zeros(wanted))

    # For layers and nets ------------------------------------------------------------------------

    def data_tensor(self) -> Tensor:
        """The values on the blob's device, without history."""
        return self._data_memory().tensor()

    def diff_tensor(self) -> Tensor:
        """The gradient on the blob's device."""
        return self._diff_memory().tensor()

    @property
    def memory(self) -> SyncedMemory:
        """Where the data are, until the blob gets another memory."""
        return self._data

    def hold(self, values: Tensor | SyncedMemory) -> None:
        """Use the memory of `values` from now on."""
        self._data = values if isinstance(values, SyncedMemory) else SyncedMemory(values)

    def hold_diff(self, values: Tensor) -> None:
        """Use the memory of `values` for the diff from now on."""
        self._diff = SyncedMemory(values)

    def share_data(self, other: Blob) -> None:
        """Share the values of `other` (`Blob::ShareData`)."""
        self._data = other._data

    def move(self, dtype: torch.dtype, device: torch.device) -> None:
        """Change the type of values and the device."""
        values = self._data.tensor()
        if (values.dtype, values.device) != (dtype, device):
            self._data = SyncedMemory(values.to(device, dtype))

    def take(self, values: Tensor) -> None:
        """Copy `values`, and take their shape."""
        if not self._data.fits(values):
            self._data = SyncedMemory(
                torch.empty(values.shape, dtype=values.dtype, device=values.device)
            )
        self._data.overwrite(values)

    def take_diff(self, values: Tensor) -> None:
        """Copy a gradient of the blob's shape."""
        self._diff_memory().overwrite(values)

    def _data_memory(self) -> SyncedMemory:
        return self._data

    def _diff_memory(self) -> SyncedMemory:
        if self._diff is None or not self._diff.resembles(self._data):
            self._diff = self._data.like(self._diff_value)
        return self._diff

    def _legacy_extent(self, axis: int) -> int:
        """The extent of an axis; 1 for missing axes (`Blob::LegacyShape`)."""
        shape = self.shape
        if len(shape) > LEGACY_AXES:
            raise CaffeError(
                f"num, channels, height and width are for blobs of up to {LEGACY_AXES} axes; "
                f"this one has the shape {shape}"
            )
        return shape[axis] if axis < len(shape) else 1


class ParamBlob(Blob):
    """A blob of a layer: the data are the layer's tensor, the diff is its gradient.

    `view` gives the tensor in the layer's own shape, `owner` the one that gradients are kept at;
    they differ in shape where a parameter is shared permissively. Both are asked each time, as
    sharing weights between nets exchanges a layer's tensors.
    """

    def __init__(self, view: Callable[[], Tensor], owner: Callable[[], Tensor]) -> None:
        self._view = view
        self._owner = owner
        self._data = SyncedMemory(view())
        self._diff = None
        self._gradient: Tensor | None = None
        self._lent: tuple[SyncedMemory, SyncedMemory] | None = None

    def reshape(self, *shape: int) -> None:
        raise CaffeError("the blobs of a layer keep their shape once the layer is set up")

    def lend(self, data: Tensor, diff: Tensor) -> None:
        """Use these as data and diff, until `take_back`."""
        self._lent = SyncedMemory(data), SyncedMemory(diff)

    def take_back(self) -> Tensor:
        """Return the lent diff, and use the layer's tensor and its gradient again."""
        assert self._lent is not None
        (_, diff), self._lent = self._lent, None
        return diff.tensor()

    def _data_memory(self) -> SyncedMemory:
        if self._lent is not None:
            return self._lent[0]
        tensor = self._view().detach()
        if not self._data.wraps(tensor):
            self._data = SyncedMemory(tensor)
        return self._data

    def _diff_memory(self) -> SyncedMemory:
        if self._lent is not None:
            return self._lent[1]
        owner = self._owner()
        if owner.grad is None:
            # After an update: the gradient's memory stays with the blob, so arrays stay valid.
            if self._gradient is None or self._gradient.shape != owner.shape:
                self._gradient = torch.zeros_like(owner, requires_grad=False)
            owner.grad = self._gradient
        self._gradient = owner.grad
        shaped = self._gradient.view(self._view().shape)
        if self._diff is None or not self._diff.wraps(shaped):
            self._diff = SyncedMemory(shaped)
        return self._diff


class BlobVec(list[Blob]):
    """The blobs of a layer."""

    def add_blob(self, *shape: int) -> None:
        """Append a blob of zeros; in a Python layer's `setup`, this adds a learnable parameter."""
        self.append(Blob(tuple(int(extent) for extent in shape)))
