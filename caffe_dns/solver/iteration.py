"""The arithmetic of one training iteration: forward, backward and update.

`run_iteration` does it layer by layer. On a GPU, small nets spend most of their time on launching
kernels; `CapturedIteration` records the same calls once as a CUDA graph and replays it for every
later batch. When to train, and what to log, is the solver's business.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from caffe_dns import log
from caffe_dns.device.recording import recording
from caffe_dns.errors import CaffeError, first_line
from caffe_dns.layers.weight_gradients import DeferredWeightGradients, SecondStream
from caffe_dns.net import Net
from caffe_dns.net.debug_info import DebugInfo
from caffe_dns.net.params import Param
from caffe_dns.parallel.averaging import GradientAverage
from caffe_dns.solver.update_rules import UpdateRule

Batch = Mapping[str, Tensor]


def due(iteration: int, interval: int) -> bool:
    """Whether something done every `interval` iterations is due; for 0 never.

    As in Caffe, the remainder decides, so that the sign does not matter: -3 means every 3.
    """
    return interval != 0 and iteration % interval == 0


class Batches:
    """The `count` batches of an iteration, each read when it is needed, and only once.

    `read` may write a batch into an earlier one that it is given.
    """

    def __init__(self, read: Callable[[Batch | None], Batch], count: int) -> None:
        self._read = read
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Batch]:
        return (self._read(None) for _ in range(self._count))

    def into(self, earlier: Sequence[Batch]) -> list[Batch]:
        """All batches, each written into one of the earlier ones if possible."""
        return [self._read(batch) for batch in earlier]


class Outcome:
    """The net's outputs in the last forward pass of an iteration, and its mean loss; detached."""

    def __init__(self, outputs: dict[str, Tensor], loss: Tensor) -> None:
        self.outputs = outputs
        self.loss = loss


class LastUpdate:
    """What the last update subtracted from each parameter that learns, where that is `wanted`."""

    def __init__(self, net: Net, *, wanted: bool) -> None:
        self._net = net
        self._wanted = wanted
        self._before: dict[Param, Tensor] = {}
        self._subtracted: dict[Param, Tensor] = {}

    def forget(self) -> None:
        """Nothing has been updated yet."""
        self._subtracted.clear()

    def begin(self) -> None:
        """The parameters are about to be updated."""
        if self._wanted:
            learning = [param for param in self._net.learnable_params if param.lr_mult != 0]
            self._before = {param: param.tensor.detach().clone() for param in learning}

    def end(self) -> None:
        """The parameters have been updated."""
        before, self._before = self._before, {}
        self._subtracted = {param: old - param.tensor.detach() for param, old in before.items()}

    def diffs(self) -> dict[Param, Tensor] | None:
        """The diffs that snapshots have beside the blobs; zeros where nothing was updated."""
        if not self._wanted:
            return None
        return {
            param: self._subtracted.get(param, torch.zeros_like(param.tensor.detach()))
            for param in self._net.learnable_params
        }


def run_iteration(
    net: Net,
    rule: UpdateRule,
    batches: Sequence[Batch] | Batches,
    average: GradientAverage | None = None,
    deferred: DeferredWeightGradients | None = None,
    *,
    debug: bool = False,
) -> Outcome:
    """Forward and backward on each batch (iter_size of them), then one update.

    With `average`, the update is that of all ranks; `deferred` computes what gradients it takes;
    with `debug`, the values of all blobs and gradients are logged.
    """
    net.context.deferred_gradients = deferred
    try:
        outcome = _run_passes(net, batches, average, debug)
    finally:
        net.context.deferred_gradients = None
        if deferred is not None:
            deferred.drop()
    if average is not None:
        average.finish()
    rule.apply()
    return outcome


def _run_passes(
    net: Net,
    batches: Sequence[Batch] | Batches,
    average: GradientAverage | None,
    debug: bool,
) -> Outcome:
    """Forward and backward on each batch."""
    total: Tensor | None = None
    for number, batch in enumerate(batches, 1):
        with DebugInfo(net) if debug else nullcontext() as info:
            blobs = net.compute(batch, inner=debug)
        loss = net.loss(blobs)
        outputs = {name: blobs[name].detach() for name in net.outputs}
        # So that backward gives back the memory of the activations as it goes along.
        blobs.clear()
        if number == len(batches):
            for sharing in (average, net.context.deferred_gradients):
                if sharing is not None:
                    sharing.arm()
        if loss.requires_grad:
            loss.backward()
        if net.context.deferred_gradients is not None:
            net.context.deferred_gradients.join()
        if info is not None:
            info.backward()
        total = loss.detach() if total is None else total + loss.detach()
    assert total is not None
    return Outcome(outputs, total if len(batches) == 1 else total / len(batches))


def capture(
    net: Net,
    rule: UpdateRule,
    sharing: tuple[GradientAverage | None, DeferredWeightGradients | None],
) -> CapturedIteration | None:
    """What replays iterations of a net on a GPU; None on other devices."""
    return CapturedIteration(net, rule, *sharing) if net.context.device.type == "cuda" else None


class CapturedIteration:
    """Iterations of one net on a GPU, replayed from a CUDA graph where the net can be captured.

    The first iterations run layer by layer: they warm up libraries and allocators. A net that
    cannot be captured, or a batch of another shape, runs layer by layer as well.
    """

    WARM_UP = 3
    #: An iteration of more passes is not recorded: the graph has each of them, and its batch.
    MOST_PASSES = 64

    def __init__(
        self,
        net: Net,
        rule: UpdateRule,
        average: GradientAverage | None = None,
        deferred: DeferredWeightGradients | None = None,
    ) -> None:
        self.net = net
        self.rule = rule
        self._average = average
        # Gradients in several buffers go on their way as autograd brings them.
        if deferred is None and (average is None or average.goes_at_once):
            deferred = SecondStream()
        self._deferred_gradients = deferred
        # Of what is shared, gradients are added up, which is done in float32.
        rule.take_rounded(net.table.unshared())
        self._runs = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._failed = False
        self._inputs: list[dict[str, Tensor]] = []
        self._outcome: Outcome | None = None

    def run(self, batches: Sequence[Batch] | Batches) -> Outcome:
        """One iteration. What it returns is overwritten by the next."""
        self._runs += 1
        if self._failed or self._runs <= self.WARM_UP or len(batches) > self.MOST_PASSES:
            return self._run_layers(batches)
        if self._graph is not None and isinstance(batches, Batches):
            batches = batches.into(self._inputs)
        batches = list(batches)
        if self._graph is None:
            self._capture(batches)
        if self._graph is None or not self._fits(batches):
            return self._run_layers(batches)
        for inputs, batch in zip(self._inputs, batches, strict=True):
            for name, tensor in inputs.items():
                if batch[name] is not tensor:
                    tensor.copy_(batch[name])
        if self.net.context.draws:
            self.net.context.generator()
        self._graph.replay()
        assert self._outcome is not None
        return self._outcome

    def forget(self) -> None:
        """Drop the graph, which keeps the ranks' connections open. A later run records another."""
        if self._graph is not None:
            torch.cuda.synchronize()
            self._graph.reset()
        self._graph = None
        self._outcome = None
        self._inputs = []

    def _fits(self, batches: Sequence[Batch]) -> bool:
        return all(
            tensor.shape == batch[name].shape
            for inputs, batch in zip(self._inputs, batches, strict=True)
            for name, tensor in inputs.items()
        )

    def _run_layers(self, batches: Sequence[Batch] | Batches) -> Outcome:
        return run_iteration(self.net, self.rule, batches, self._average, self._deferred_gradients)

    def _capture(self, batches: Sequence[Batch]) -> None:
        """Record one iteration; nothing is computed. Says so, once, where that is impossible."""
        gc.collect()
        torch.cuda.synchronize()
        # While a graph replays, cuBLAS works in memory of the graph's own.
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        away = self.net.given_away()
        inputs = [taken_over(batch, away) for batch in batches]
        graph = torch.cuda.CUDAGraph()
        if self.net.context.draws:
            graph.register_generator_state(self.net.context.generator())
        try:
            with recording(graph):
                self._outcome = self._run_layers(inputs)
        except CaffeError:
            raise
        except (RuntimeError, ValueError) as error:
            self._failed = True
            self.net.context.renew_generator()
            self.rule.drop_gradients()
            if self._average is not None:
                self._average.reset()
            torch.cuda.synchronize()
            log.info(f"Running layer by layer: no CUDA graph of this net ({first_line(error)})")
            return
        self.rule.finish_capture()
        self._graph, self._inputs = graph, inputs
        log.info("Replaying iterations from a CUDA graph")


def taken_over(batch: Batch, away: Collection[str]) -> dict[str, Tensor]:
    """Tensors with a batch's numbers, to be kept and written to.

    Those of `away` are the batch's own, but for parts of larger ones, all of which would be kept.
    """
    return {
        name: tensor
        if name in away and tensor.nbytes == tensor.untyped_storage().nbytes()
        else tensor.clone()
        for name, tensor in batch.items()
    }
