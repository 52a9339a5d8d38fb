"""Divergence: noticed at a display or before a snapshot, and traced to where it begins.

A loss that is not finite is noticed directly. But the softmax loss takes the logarithm of at least
the smallest normal float, and where the comparison with a NaN lets that pass (on GPUs, in Caffe and
here), a net of NaNs shows a loss of 87.3365 for ever. So parameters are checked, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.errors import CaffeError, nearest
from caffe_dns.net import Net
from caffe_dns.net.params import Param
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import SolverParameter

#: Advice about a net that has diverged.
ON_NAN = ("stop", "warn")
#: -log(FLT_MIN), the loss of a probability of 0 or NaN.
_OF_NOTHING = -math.log(torch.finfo(torch.float32).tiny)


class Guard:
    """Reports that a net has diverged, once for each place where it begins.

    `on_nan` is "stop", which raises the CaffeError, or "warn", which logs it and continues.
    Raises CaffeError for any other word.
    """

    def __init__(self, param: SolverParameter, net: Net, on_nan: str = "stop") -> None:
        if on_nan not in ON_NAN:
            raise CaffeError(
                f"on_nan: '{on_nan}' is not one of {', '.join(ON_NAN)}{nearest(on_nan, ON_NAN)}"
            )
        self.param = param
        self.net = net
        self.stops = on_nan == "stop"
        self._told: set[str] = set()

    def check(
        self,
        iteration: int,
        loss: Tensor | None,
        outputs: Mapping[str, Tensor],
        batch: Mapping[str, Tensor],
        largest: Tensor | None = None,
    ) -> bool:
        """Whether everything is finite; if not, raises CaffeError or warns.

        `loss`, `outputs` and `batch` are those of the last iteration, as far as they are known.
        Waits for the device, unless all of these and `largest_values` are on the host. The net runs
        once more only if something is wrong.
        """
        value = 0.0 if loss is None else float(loss)
        wrong = first_not_finite(self.net, largest_values(self.net) if largest is None else largest)
        if math.isfinite(value) and wrong is None and not self._may_hide_nan(outputs):
            return True
        origin = find_origin(self.net, batch) or wrong
        if math.isfinite(value) and origin is None:
            return True  # a genuine loss of 87.3365
        what = self._describe(value, outputs) if not math.isfinite(value) else ""
        places = [what] if what else []
        if origin is not None:
            places.append(f"{origin} is not finite" if not what else f"it begins in {origin}")
        self._tell(f"Iteration {iteration}: {'; '.join(places)}", origin or what)
        return False

    def _tell(self, what: str, place: str) -> None:
        message = f"{what}; {self._advice()}"
        if self.stops:
            raise CaffeError(message)
        if place not in self._told:
            self._told.add(place)
            log.warning(message)

    def _may_hide_nan(self, outputs: Mapping[str, Tensor]) -> bool:
        """Whether a loss is the one that scores of NaN give."""
        losses = [outputs[name] for name in self.net.loss_weights if name in outputs]
        return any(
            math.isclose(value, _OF_NOTHING, rel_tol=1e-4)
            for tensor in losses
            if tensor.numel() == 1
            for value in tensor.reshape(-1).tolist()
        )

    def _describe(self, value: float, outputs: Mapping[str, Tensor]) -> str:
        names = [name for name in self.net.loss_weights if name in outputs]
        guilty = [name for name in names if not bool(outputs[name].isfinite().all())]
        blamed = ", ".join(f"'{name}'" for name in guilty or self.net.loss_weights)
        return f"the loss (output {blamed}) is {value}"

    def _advice(self) -> str:
        advice = f"training has diverged: try a base_lr below {log.number(self.param.base_lr)}"
        if self.param.clip_gradients < 0:
            advice += ", or clip_gradients"
        if any(step.layer.mask_indices for step in self.net.steps):
            advice += ", or lower thresholds"
        return f"{advice}; if it is so from the start, look at data and weights"


def _looked_at(net: Net) -> list[Param]:
    return [param for param in net.learnable_params if param.tensor.numel()]


def largest_values(net: Net) -> Tensor:
    """The largest absolute value in each blob that is not empty, in the net's order.

    It is finite if all values of the blob are. It takes one pass over memory, not six.
    """
    tensors = [param.tensor.detach() for param in _looked_at(net)]
    return torch.stack(torch._foreach_norm(tensors, math.inf)) if tensors else torch.empty(0)


def first_not_finite(net: Net, largest: Tensor) -> str | None:
    """The first blob of a layer, in the net's order, that is not finite, by `largest_values`."""
    finite = largest.isfinite().tolist()
    if all(finite):
        return None
    param = _looked_at(net)[finite.index(False)]
    return _blob(param.index, param.layer.name)


def find_origin(net: Net, batch: Mapping[str, Tensor]) -> str | None:
    """The place where a pass over `batch` first has a value that is not finite, or None.

    `batch` has the tops of the data layers. The net's blobs are not changed.
    """
    if not batch and any(step.layer.brings_data for step in net.steps):
        return None
    observer = net.observer
    net.observer = search = _Search()
    try:
        with torch.no_grad(), _left_alone(net):
            net.compute(batch)
    finally:
        net.observer = observer
    return search.found


class _Search:
    """Checks every layer of a pass until a value is not finite."""

    def __init__(self) -> None:
        self.found: str | None = None

    def before(self, step: Step, bottoms: list[Tensor]) -> list[Tensor]:
        if self.found is None and (index := _first(step.layer.blobs)) is not None:
            self.found = _blob(index, step.layer.name)
        return bottoms

    def after(self, step: Step, tops: Sequence[Tensor]) -> None:
        if self.found is None and (index := _first(tops)) is not None:
            self.found = f"top '{step.layer.param.top[index]}' of layer '{step.layer.name}'"


def _first(tensors: Iterable[Tensor]) -> int | None:
    """The index of the first that is not finite."""
    for index, tensor in enumerate(tensors):
        if not bool(tensor.isfinite().all()):
            return index
    return None


def _blob(index: int, layer: str) -> str:
    return f"blob {index} of layer '{layer}'"


@contextmanager
def _left_alone(net: Net) -> Iterator[None]:
    """Restores running statistics and the count of passes."""
    blobs = [p.tensor for p in net.learnable_params if not p.tensor.requires_grad]
    before = [blob.detach().clone() for blob in blobs]
    passes = net.context.passes
    try:
        yield
    finally:
        net.context.passes = passes
        for blob, values in zip(blobs, before, strict=True):
            blob.detach().copy_(values)
