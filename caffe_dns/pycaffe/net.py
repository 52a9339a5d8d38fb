"""`caffe.Net`: a net whose blobs are numpy arrays, with pycaffe's names (`_caffe.cpp`).

The layers run in `execution`; `caffe_dns.net` builds them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np

from caffe_dns import load_net
from caffe_dns.blob import Blob
from caffe_dns.errors import BadValue, CaffeError, nearest
from caffe_dns.layers.memory_data import MemoryData
from caffe_dns.layers.python import UserLayer
from caffe_dns.net import Net as CoreNet
from caffe_dns.net.wiring import Step
from caffe_dns.proto.caffe_pb2 import Phase
from caffe_dns.pycaffe import batches
from caffe_dns.pycaffe.execution import Execution, LayerCallback
from caffe_dns.pycaffe.layer import NetLayer, layer_of
from caffe_dns.pycaffe.mode import mode
from caffe_dns.user_code import as_raised
from caffe_dns.weights import copy_trained_layers, save_weights, share_weights

Arrays = dict[str, np.ndarray]


class Net:
    """A net in one phase: `Net(file, phase, level=0, stages=None, weights=None)`.

    pycaffe's old order, `Net(file, weights, phase)`, is accepted, too. `blobs` and `params`
    give arrays that are the net's own memory: what is written to `blobs['data'].data` is the
    input of the next forward pass, what is written to `params['conv1'][0].data` the weight.
    Device, seed and surgery are those of the process (`mode`) when the net is made. Raises
    CaffeError, which is a RuntimeError, for errors in the files; exceptions of Python layers are
    passed on as they are.
    """

    def __init__(
        self,
        network_file: str | Path,
        phase: int | str | Path,
        level: int = 0,
        stages: Iterable[str] | None = None,
        weights: str | Path | None = None,
    ) -> None:
        new_phase, trained = phase, weights
        if isinstance(phase, str | Path):
            new_phase, trained, level = level, phase, 0
        with as_raised():
            core = load_net(
                network_file,
                Phase.Name(new_phase),
                trained,
                mode.surgery,
                device=mode.device(),
                seed=mode.new_seed(),
                level=level,
                stages=list(stages or ()),
                allow_python_layers=mode.python_layers,
                quiet=mode.quiet,
            )
        self._wrap(core)

    @classmethod
    def of(cls, core: CoreNet) -> Net:
        """The interface to a net that a solver has built; it sees the solver's passes, too."""
        net = cls.__new__(cls)
        net._wrap(core)
        net.execution.follow()
        return net

    def _wrap(self, core: CoreNet) -> None:
        self.core = core
        self._steps: list[Step] = core.steps
        self._layer_names = [step.layer.name for step in core.steps]
        self._blob_names = list(core.blob_shapes)
        device, weights = core.context.device, core.loss_weights
        self.blobs: OrderedDict[str, Blob] = OrderedDict(
            (name, Blob(shape, device=device, diff_value=weights.get(name, 0.0)))
            for name, shape in core.blob_shapes.items()
        )
        self.layers = [layer_of(core, step) for step in core.steps]
        self.execution = Execution(core, self.blobs, [layer.blobs for layer in self.layers])

    # What there is ------------------------------------------------------------------------------

    @property
    def inputs(self) -> list[str]:
        """The names of the blobs that the program has to fill."""
        return self.core.inputs

    @property
    def outputs(self) -> list[str]:
        """The names of the blobs that no layer reads."""
        return list(self.core.outputs)

    @property
    def params(self) -> OrderedDict[str, Sequence[Blob]]:
        """The blobs of each layer that has any: weight, bias, masks."""
        return OrderedDict(
            (name, layer.blobs)
            for name, layer in zip(self._layer_names, self.layers, strict=True)
            if layer.blobs
        )

    @property
    def layer_dict(self) -> OrderedDict[str, NetLayer | UserLayer]:
        return OrderedDict(zip(self._layer_names, self.layers, strict=True))

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        return OrderedDict((step.layer.name, list(step.tops)) for step in self._steps)

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        return OrderedDict((step.layer.name, list(step.bottoms)) for step in self._steps)

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """The weight of each blob in the loss."""
        weights = self.core.loss_weights
        return OrderedDict((name, weights.get(name, 0.0)) for name in self.blobs)

    # Running ------------------------------------------------------------------------------------

    def forward(
        self,
        blobs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **inputs: np.ndarray,
    ) -> Arrays:
        """Run the layers from `start` to `end`; returns the outputs, and those of `blobs`.

        `inputs` are arrays for all inputs of the net, or for none of them. With `end`, the outputs
        are the tops of that layer. The arrays returned are the blobs' own memory.
        """
        return self._run(inputs, blobs, start, end)

    def backward(
        self,
        diffs: Iterable[str] | None = None,
        start: str | None = None,
        end: str | None = None,
        **outputs: np.ndarray,
    ) -> Arrays:
        """Run the layers from `start` down to `end`; returns the inputs' diffs, those of `diffs`.

        `outputs` are diffs for all outputs of the net, or for none of them: then they are what
        stands in the blobs, a loss's weight at first. With `end`, the diffs returned are those of
        that layer's bottoms. Diffs of `params` add up until `clear_param_diffs`.
        """
        return self._run_back(outputs, diffs, start, end)

    def forward_all(self, blobs: Iterable[str] | None = None, **inputs: np.ndarray) -> Arrays:
        """`forward` over inputs of any number of records, batch by batch."""
        results: dict[str, list[np.ndarray]] = {}
        for batch in batches.split(inputs, self._batch_size):
            batches.collect(results, self._run(batch, blobs))
        return batches.join(results, batches.records(inputs))

    def forward_backward_all(
        self,
        blobs: Iterable[str] | None = None,
        diffs: Iterable[str] | None = None,
        **arrays: np.ndarray,
    ) -> tuple[Arrays, Arrays]:
        """`forward` and `backward` over any number of records, batch by batch.

        `arrays` are inputs and diffs of outputs by name.
        """
        unknown = sorted(set(arrays) - {*self.inputs, *self.outputs})
        if unknown:
            raise CaffeError(f"'{unknown[0]}' is neither an input nor an output of this net")
        inputs = {name: arrays[name] for name in self.inputs if name in arrays}
        outputs = {name: arrays[name] for name in self.outputs if name in arrays}
        results: dict[str, list[np.ndarray]] = {}
        gradients: dict[str, list[np.ndarray]] = {}
        for batch, top_diffs in zip_longest(
            batches.split(inputs, self._batch_size), batches.split(outputs, self._batch_size)
        ):
            batches.collect(results, self._run(batch or {}, blobs))
            batches.collect(gradients, self._run_back(top_diffs or {}, diffs))
        records = batches.records(arrays)
        return batches.join(results, records), batches.join(gradients, records)

    def reshape(self) -> None:
        """Propagate the inputs' shapes through the net."""
        with as_raised():
            self.execution.reshape()

    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """The records of the MemoryData layer that the net begins with.

        `data` is [N, channels, height, width], `labels` [N] or [N, 1, 1, 1]; N is a multiple of
        the batch. Arrays of float32 are not copied: what is written into them later counts.
        """
        layer = self._steps[0].layer
        if not isinstance(layer, MemoryData):
            raise CaffeError(
                f"set_input_arrays is for nets whose first layer is a MemoryData layer; "
                f"here it is a {layer.type} layer",
                layer=layer.name,
            )
        layer.set_input(data, labels)

    _set_input_arrays = set_input_arrays

    def before_forward(self, callback: LayerCallback) -> None:
        """From now on, call `callback` with the number of each layer before it runs."""
        self.execution.callbacks.before_forward.append(callback)

    def after_forward(self, callback: LayerCallback) -> None:
        """From now on, call `callback` with the number of each layer after it has run."""
        self.execution.callbacks.after_forward.append(callback)

    def before_backward(self, callback: LayerCallback) -> None:
        """The same in backward passes, also at layers that pass no gradient on."""
        self.execution.callbacks.before_backward.append(callback)

    def after_backward(self, callback: LayerCallback) -> None:
        """The same in backward passes, also at layers that pass no gradient on."""
        self.execution.callbacks.after_backward.append(callback)

    # Weights ------------------------------------------------------------------------------------

    def copy_from(self, file: str | Path) -> None:
        """Copy trained layers by name, from a .caffemodel or .caffemodel.h5 file."""
        self.execution.bring_writes()
        self.execution.forget()
        copy_trained_layers(self.core, str(file))

    load_hdf5 = copy_from

    def share_with(self, other: Net) -> None:
        """Use the weights of `other` from now on, in the layers of the same name.

        Diffs stay apart.
        """
        self.execution.forget()
        share_weights(self.core, other.core)

    def save(self, file: str | Path) -> None:
        """Write the layers and their blobs as a .caffemodel."""
        self.execution.bring_writes()
        save_weights(self.core, file)

    def save_hdf5(self, file: str | Path) -> None:
        """Write the layers and their blobs as a .caffemodel.h5."""
        self.execution.bring_writes()
        save_weights(self.core, file, hdf5=True)

    def clear_param_diffs(self) -> None:
        """Set the diffs of all layers' blobs to zero."""
        self.execution.clear_param_diffs()

    # By number, as in _caffe.cpp ----------------------------------------------------------------

    @property
    def _blobs(self) -> list[Blob]:
        return list(self.blobs.values())

    @property
    def _blob_loss_weights(self) -> list[float]:
        return list(self.blob_loss_weights.values())

    @property
    def _inputs(self) -> list[int]:
        return self._numbers(self.inputs)

    @property
    def _outputs(self) -> list[int]:
        return self._numbers(self.outputs)

    def _bottom_ids(self, layer: int) -> list[int]:
        return self._numbers(self._steps[layer].bottoms)

    def _top_ids(self, layer: int) -> list[int]:
        return self._numbers(self._steps[layer].tops)

    def _forward(self, start: int, end: int) -> float:
        """Run layers number `start` to `end`, both included; returns their loss."""
        self._check_numbers(start, end)
        with as_raised():
            return float(self.execution.forward(start, end))

    def _backward(self, start: int, end: int) -> None:
        """Run layers number `start` down to `end`, both included."""
        self._check_numbers(end, start)
        with as_raised():
            self.execution.backward(start, end)

    def _numbers(self, blobs: Iterable[str]) -> list[int]:
        return [self._blob_names.index(name) for name in blobs]

    def _check_numbers(self, first: int, last: int) -> None:
        for number in (first, last):
            if not 0 <= number < len(self._steps):
                raise CaffeError(f"there is no layer {number}; the net has {len(self._steps)}")

    # Help ---------------------------------------------------------------------------------------

    def _run(
        self,
        inputs: Mapping[str, np.ndarray],
        blobs: Iterable[str] | None,
        start: str | None = None,
        end: str | None = None,
    ) -> Arrays:
        first = 0 if start is None else self._index(start)
        last = len(self._steps) - 1 if end is None else self._index(end)
        self._fill("input", inputs, self.inputs)
        with as_raised():
            self.execution.forward(first, last)
        names = self.outputs if end is None else self._steps[last].tops
        return {name: self.blobs[name].data for name in {*names, *(blobs or ())}}

    def _run_back(
        self,
        outputs: Mapping[str, np.ndarray],
        diffs: Iterable[str] | None,
        start: str | None = None,
        end: str | None = None,
    ) -> Arrays:
        first = len(self._steps) - 1 if start is None else self._index(start)
        last = 0 if end is None else self._index(end)
        self._fill("output", outputs, self.outputs)
        with as_raised():
            self.execution.backward(first, last)
        names = self.inputs if end is None else self._steps[last].bottoms
        return {name: self.blobs[name].diff for name in {*names, *(diffs or ())}}

    @property
    def _batch_size(self) -> int:
        return next(iter(self.blobs.values())).num

    def _index(self, layer: str) -> int:
        if layer not in self._layer_names:
            raise BadValue(f"the net has no layer '{layer}'{nearest(layer, self._layer_names)}")
        return self._layer_names.index(layer)

    def _fill(self, kind: str, arrays: Mapping[str, np.ndarray], expected: Sequence[str]) -> None:
        """Put arrays into the data of inputs, or into the diffs of outputs: all of them, or none.

        Raises CaffeError for other blobs, and for arrays that do not fit.
        """
        if arrays and set(arrays) != set(expected):
            raise CaffeError(
                f"the {kind}s of this net are {', '.join(expected) or 'none'}, "
                f"but given are {', '.join(arrays)}"
            )
        for name, array in arrays.items():
            blob = self.blobs[name]
            target = blob.data if kind == "input" else blob.diff
            try:
                # Values for one record are not those for all of them.
                if np.shape(array)[:1] != blob.shape[:1]:
                    raise ValueError
                target[...] = array
            except ValueError:
                raise CaffeError(
                    f"the {kind} '{name}' has the shape {blob.shape}, "
                    f"the array given for it {np.shape(array)}"
                ) from None
