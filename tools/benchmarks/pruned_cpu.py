#!/usr/bin/env python3
"""What a pruned net costs on a CPU, against the dense one in plain PyTorch and in onnxruntime.

    python tools/benchmarks/pruned_cpu.py --model M --weights W [--net lenet] [--batches 1 64]
    python tools/benchmarks/pruned_cpu.py --layers alexnet --density 0.1 [--batches 1 16]

M is a definition whose input is no data layer, such as PREFIX_pruned.prototxt of the run that
pruned the net. The first prints, for each batch size, the time of a pass of the dense net as one
writes it in plain PyTorch, and of the pruned net: as it is, shrunk, and shrunk with its zeros left
out, in dns, and in onnxruntime where that is installed; and how many times faster than the dense
net each is. "program" is what runs inside the net, called by itself. The second does so for the
convolutions of a net, each with random weights of which so many are left, against oneDNN's dense
convolution. All take turns in one process; the fastest of their turns counts. One thread unless
--threads says otherwise.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor, nn

from caffe_dns import load_net, log
from caffe_dns.layers.base import Context, Layer
from caffe_dns.net import Net
from caffe_dns.net.definition import with_state
from caffe_dns.proto.caffe_pb2 import TEST
from caffe_dns.proto.upgrade import read_net
from caffe_dns.sparse.program import Program
from tools.benchmarks.plain_nets import NETS, Classifier

MODELS = Path(__file__).resolve().parents[2] / "models"
#: How often each takes its turn, and for how many seconds.
TURNS, SECONDS = 15, 0.2
Passes = dict[str, Callable[[], object]]


def fastest(passes: Passes) -> dict[str, float]:
    """Seconds of the fastest pass of each."""
    best = dict.fromkeys(passes, float("inf"))
    for work in passes.values():
        work()
    for _ in range(TURNS):
        for name, work in passes.items():
            end = time.perf_counter() + SECONDS
            while time.perf_counter() < end:
                start = time.perf_counter()
                work()
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def print_table(title: str, best: dict[str, float], first: str) -> None:
    print(f"\n| {title} | microseconds | times as fast |\n| --- | ---: | ---: |")
    for name, seconds in best.items():
        print(f"| {name} | {seconds * 1e6:,.1f} | {best[first] / seconds:.2f} |", flush=True)


# A whole net ------------------------------------------------------------------------------------


@cache
def export(model: str, weights: str, output: Path, *flags: str) -> Path:
    command = [sys.executable, "-m", "caffe_dns", "export", "--quiet", *flags]
    command += ["--model", model, "--weights", weights, "--output", str(output)]
    subprocess.run(command, check=True, capture_output=True)
    return output


def scores_of(name: str) -> nn.Module:
    """The dense net by hand, without its loss."""
    plain = NETS[name].build()
    if not isinstance(plain, Classifier):
        sys.exit(f"{name} is not one chain of modules")
    return nn.Sequential(plain.scores, nn.Softmax(1)).eval()


def reshaped(net: Net, images: Tensor) -> Net:
    net.reshape({net.inputs[0]: tuple(images.shape)})
    return net


def nets(name: str, model: str, weights: str, batch: int, folder: Path) -> Passes:
    images = torch.rand((batch, *NETS[name].image))
    dense = scores_of(name)
    dense_onnx = folder / "dense.onnx"
    small = export(model, weights, folder / "small.caffemodel", "--shrink")
    definition = small.with_suffix(".prototxt")
    onnx = export(model, weights, folder / "small.onnx", "--shrink")
    shrunk = reshaped(load_net(definition, weights=small), images)
    full = export(model, weights, folder / "full.caffemodel")
    plain = reshaped(load_net(model_of(full, model), weights=full), images)
    sparse = load_net(definition, weights=small, sparse=True)
    layers = [step.layer for step in sparse.steps if step.layer.type != "Input"]
    program = Program(layers, tuple(images.shape[1:]))
    given = {sparse.inputs[0]: images}
    passes: Passes = {
        "dense, PyTorch by hand": lambda: dense(images),
        "pruned, dns": lambda: plain({plain.inputs[0]: images}),
        "shrunk, dns": lambda: shrunk({shrunk.inputs[0]: images}),
        "shrunk, without zeros, dns": lambda: sparse(given),
        "the same, program": lambda: program(images),
    }
    with torch.no_grad():
        wanted, found = plain({plain.inputs[0]: images}), sparse(given)
    (output,) = sparse.outputs
    torch.testing.assert_close(found[output], wanted[output], rtol=1e-4, atol=1e-5)
    try:
        import onnxruntime
    except ImportError:
        return passes
    torch.onnx.export(dense, (images,), str(dense_onnx), dynamo=False)
    for label, file in (("dense, onnxruntime", dense_onnx), ("shrunk, onnxruntime", onnx)):
        passes[label] = onnx_pass(onnxruntime, file, images)
    return passes


def onnx_pass(onnxruntime: object, file: Path, images: Tensor) -> Callable[[], object]:
    options = onnxruntime.SessionOptions()  # type: ignore[attr-defined]
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(  # type: ignore[attr-defined]
        str(file), options, providers=["CPUExecutionProvider"]
    )
    given = {session.get_inputs()[0].name: images.numpy()}
    return lambda: session.run(None, given)


def model_of(weights: Path, model: str) -> str:
    """The definition that export has written beside the weights, or else the given one."""
    written = weights.with_suffix(".prototxt")
    return str(written) if written.exists() else model


# Convolutions -----------------------------------------------------------------------------------


def convolutions(name: str, density: float, batch: int) -> None:
    """A table for each convolution of a net in models/."""
    param = read_net(str(MODELS / name / "deploy.prototxt")).message
    net = Net(with_state(param, TEST), Context(surgery=False))
    net.reshape({blob: (batch, *net.blob_shapes[blob][1:]) for blob in net.inputs})
    totals = {"dense": 0.0, "without zeros": 0.0}
    print(f"\n| batch {batch} | dense, microseconds | without zeros | times as fast |")
    print("| --- | ---: | ---: | ---: |")
    for step in net.steps:
        if step.layer.type != "Convolution":
            continue
        best = convolution(step.layer, net.blob_shapes[step.bottoms[0]], density)
        for key in totals:
            totals[key] += best[key]
        print_row(step.layer.name, best)
    print_row("all", totals)


def convolution(layer: Layer, shape: tuple[int, ...], density: float) -> dict[str, float]:
    weight = layer.blobs[0]
    weight.data.normal_().mul_(torch.rand(weight.shape) < density)
    bottom = torch.randn(shape)
    program = Program([layer], shape[1:])
    return fastest({"dense": lambda: layer(bottom), "without zeros": lambda: program(bottom)})


def print_row(name: str, best: dict[str, float]) -> None:
    dense, sparse = best["dense"], best["without zeros"]
    print(
        f"| {name} | {dense * 1e6:,.0f} | {sparse * 1e6:,.0f} | {dense / sparse:.2f} |", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--weights")
    parser.add_argument("--net", default="lenet", choices=NETS)
    parser.add_argument("--layers", metavar="NET", help="a net of models/")
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    torch.manual_seed(1)
    log.set_quiet(True)
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        for batch in flags.batches:
            if flags.layers:
                convolutions(flags.layers, flags.density, batch)
            elif flags.model and flags.weights:
                passes = nets(flags.net, flags.model, flags.weights, batch, Path(folder))
                print_table(f"{flags.net}, batch {batch}", fastest(passes), next(iter(passes)))
            else:
                parser.error("give --model and --weights, or --layers")


if __name__ == "__main__":
    main()
