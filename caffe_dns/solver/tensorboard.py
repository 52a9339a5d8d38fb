"""`--tensorboard`: curves, histograms, settings and the net's graph in TensorBoard's files."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from caffe_dns.errors import CaffeError
from caffe_dns.net import Net
from caffe_dns.proto.caffe_pb2 import SolverParameter
from caffe_dns.solver.observers import Display

#: What is told of a solver's definition where it is given, beside the fields that are numbers.
_TEXTS = ("type", "lr_policy", "regularization_type")
_NUMBERS = (
    *(
        "base_lr",
        "gamma",
        "power",
        "momentum",
        "momentum2",
        "weight_decay",
        "stepsize",
        "iter_size",
    ),
    *("max_iter", "clip_gradients", "random_seed", "surgery_stop_iter"),
    *("surgery_iter_gamma", "surgery_iter_power"),
)


class TensorBoard:
    """An observer that writes TensorBoard's event files.

    Losses, scores, the rate and sparsities are written at each display and test; histograms of all
    weights and masks at each test and at the end; the graph of the net once; the settings with the
    last scores at the end. Points that an interrupted run left from iteration `start` on are
    dropped by TensorBoard. If nothing can be written from the start, raises a CaffeError that
    names the folder; later, the OSError of this call, or of the writer's thread before it.
    """

    def __init__(self, folder: str, net: Net, param: SolverParameter, start: int = 0) -> None:
        self._net = net
        self._param = param
        self._last = start
        self._shown = -1
        self._scores: dict[str, float] = {}
        _leave_failures_to_callers()
        try:
            self._writer = _summary_writer()(folder, purge_step=start or None)
            self._add_graph()
            self._writer.flush()
        except OSError as error:
            raise CaffeError(f"cannot be written: {error.strerror}", file=folder) from None

    def displayed(self, display: Display) -> None:
        iteration = self._last = display.iteration
        self._add("train/smoothed_loss", display.loss, iteration)
        self._add("train/lr", display.rate, iteration)
        self._add_scores("train", display.outputs, iteration)
        for count in display.surgery:
            self._add(f"sparsity/{count.layer}", count.sparsity, iteration)
            self._add(f"spliced_back/{count.layer}", count.spliced_back, iteration)
            self._add(f"threshold/{count.layer}", count.threshold, iteration)

    def tested(self, iteration: int, index: int, scores: Mapping[str, Tensor]) -> None:
        self._last = iteration
        self._add_scores("test" if index == 0 else f"test_{index}", scores, iteration)
        self._add_histograms(iteration)

    def close(self) -> None:
        self._add_histograms(self._last)
        if self._scores:
            self._add_settings()
        self._writer.flush()  # which raises what `close` passes over
        self._writer.close()

    def _add_scores(self, phase: str, scores: Mapping[str, Tensor], iteration: int) -> None:
        for name, score in scores.items():
            values = score.reshape(-1).tolist()
            for index, value in enumerate(values):
                title = name if len(values) == 1 else f"{name}_{index}"
                self._add(f"{phase}/{title}", value, iteration)
                if phase == "test":
                    self._scores[f"hparam/{title}"] = value

    def _add(self, title: str, value: float, iteration: int) -> None:
        self._writer.add_scalar(title, value, iteration)

    def _add_histograms(self, iteration: int) -> None:
        """All weights and masks as they are now, once for each iteration."""
        if iteration == self._shown:
            return
        self._shown = iteration
        for step in self._net.steps:
            layer = step.layer
            for index, blob in enumerate(layer.blobs):
                title = f"mask {index}" if index in layer.mask_indices else f"blob {index}"
                values = blob.detach().float().cpu()
                values = values[values.isfinite()]
                if values.numel():
                    self._writer.add_histogram(f"{layer.name}/{title}", values, iteration)

    def _add_graph(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(graph_def=_graph(self._net).SerializeToString())
        self._writer.file_writer.add_event(event)

    def _add_settings(self) -> None:
        """The settings with the last scores. Not `add_hparams`, which has a writer of its own."""
        from torch.utils.tensorboard.summary import hparams

        for summary in hparams(_settings(self._param), self._scores):
            self._writer.file_writer.add_summary(summary)
        for title, score in self._scores.items():
            self._writer.add_scalar(title, score)


def _graph(net: Net) -> Any:
    """The layers as TensorBoard's graph: an input is the layer that has made the blob."""
    from tensorboard.compat.proto.attr_value_pb2 import AttrValue
    from tensorboard.compat.proto.graph_pb2 import GraphDef
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    graph = GraphDef()
    makers: dict[str, str] = {}
    for step in net.steps:
        node = graph.node.add(name=step.layer.name, op=step.layer.type)
        node.input.extend(makers[blob] for blob in step.bottoms)
        shapes = [
            TensorShapeProto(
                dim=[TensorShapeProto.Dim(size=extent) for extent in net.blob_shapes[blob]]
            )
            for blob in step.tops
        ]
        node.attr["_output_shapes"].CopyFrom(AttrValue(list=AttrValue.ListValue(shape=shapes)))
        makers.update(dict.fromkeys(step.tops, step.layer.name))
    return graph


def _settings(param: SolverParameter) -> dict[str, str | float]:
    """What the definition sets, and by what a run is told from others."""
    fields: dict[str, str | float] = {name: getattr(param, name) for name in _TEXTS}
    fields |= {name: getattr(param, name) for name in _NUMBERS if param.HasField(name)}
    return fields


def check_tensorboard(folder: str) -> None:
    """Raise CaffeError when the package is missing, or `folder` cannot be its folder."""
    _summary_writer()
    try:
        folder.encode()
    except UnicodeEncodeError:
        raise CaffeError("TensorBoard needs a name in UTF-8", file=folder) from None
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise CaffeError("--tensorboard needs a folder, and this is a file", file=folder)


def _leave_failures_to_callers() -> None:
    """Let the writer's thread end without a traceback: the next call of the writer raises it."""
    report = threading.excepthook

    def report_others(failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard."):
            report(failure)

    threading.excepthook = report_others


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise CaffeError("--tensorboard needs a package: pip install tensorboard") from None
    return SummaryWriter
