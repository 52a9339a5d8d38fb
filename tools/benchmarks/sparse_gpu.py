#!/usr/bin/env python3
"""What the pattern 2:4 gains on a GPU: layers on sparse Tensor Cores against dense ones.

    python tools/benchmarks/sparse_gpu.py [--precisions bf16 fp16] [--batches 64 256 1024]

Prints, for the large inner products of AlexNet and VGG-16 and some 1x1 convolutions of ResNet-50,
the time of a pass of each batch, dense (`torch.nn.functional.linear`, for a convolution on images
with channels innermost) and as `dns test --sparse` does it, how many times as fast that is; the
same of passes that are recorded as CUDA graphs and replayed, so that the host's part is left out;
and how far the results are apart, of the largest one. Weights are random, 2 of 4 neighbours zero.
The fastest of some rounds counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from caffe_dns import log
from caffe_dns.errors import first_line
from caffe_dns.layers.base import Context
from caffe_dns.layers.masked import WeightedLayer
from caffe_dns.net import Net
from caffe_dns.net.definition import with_state
from caffe_dns.proto.caffe_pb2 import TEST, NetParameter
from caffe_dns.proto.text import parse_text
from caffe_dns.sparse.semi_structured import Product, compress, fastest, filled_up

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
#: Outputs and inputs; of a convolution also the height and width of its images.
LAYERS: dict[str, tuple[int, ...]] = {
    "AlexNet fc6": (4096, 9216),
    "VGG fc6": (4096, 25088),
    "fc7": (4096, 4096),
    "fc8": (1000, 4096),
    "1x1, 256 to 64, 56": (64, 256, 56),
    "1x1, 512 to 128, 28": (128, 512, 28),
    "1x1, 1024 to 256, 14": (256, 1024, 14),
    "1x1, 2048 to 512, 7": (512, 2048, 7),
    "1x1, 512 to 2048, 7": (2048, 512, 7),
}


def layer_of(outputs: int, inputs: int, *size: int, batch: int, device: torch.device) -> Net:
    """A net of this layer alone."""
    shape = (batch, inputs, *size, *size)
    dims = " ".join(f"dim: {extent}" for extent in shape)
    kind, settings = ("Convolution", "kernel_size: 1") if size else ("InnerProduct", "")
    param = "convolution_param" if size else "inner_product_param"
    text = f"""
        layer {{ name: 'data' type: 'Input' top: 'data' input_param {{ shape {{ {dims} }} }} }}
        layer {{ name: 'it' type: '{kind}' bottom: 'data' top: 'it' {param} {{
          num_output: {outputs} {settings} bias_term: false sparsity_term: false }} }}"""
    return Net(with_state(parse_text(text, NetParameter).message, TEST), Context(device=device))


def replayed(work: Callable[[], object]) -> Callable[[], object]:
    """A pass that is recorded, and replayed when it is called."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def measure(shape: tuple[int, ...], batch: int, dtype: torch.dtype) -> tuple[list[float], float]:
    """Seconds of the dense product and the sparse one, of both replayed, and how far apart."""
    device = torch.device("cuda")
    net = layer_of(*shape, batch=batch, device=device)
    layer = net.layer("it")
    assert isinstance(layer, WeightedLayer)
    outputs, inputs = shape[:2]
    weight = torch.randn(outputs, inputs, device=device) / inputs**0.5
    places = torch.rand(outputs, inputs // 4, 4, device=device).argsort(2) < 2
    matrix = (weight * places.view(outputs, inputs)).to(dtype)
    bottom = torch.randn(net.blob_shapes["data"], device=device, dtype=dtype)
    if bottom.dim() == 4:
        bottom = bottom.to(memory_format=torch.channels_last)
    dense = Product(layer, matrix, outputs, None)
    sparse = Product(layer, compress(filled_up(matrix)), outputs, None)
    wanted = dense(bottom)
    apart = float((sparse(bottom) - wanted).abs().max() / wanted.abs().max())
    passes: list[Callable[[], object]] = [partial(dense, bottom), partial(sparse, bottom)]
    return [fastest(work) for work in (*passes, *map(replayed, passes))], apart


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--precisions", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256, 1024])
    flags = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("this needs a GPU")
    log.set_quiet(True)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    for precision in flags.precisions:
        both = "dense, ms | 2:4, ms | times as fast"
        print(f"\n| {precision} | batch | {both} | replayed: {both} | apart |")
        print("| --- |" + " ---: |" * 8)
        for name, shape in LAYERS.items():
            for batch in flags.batches:
                try:
                    times, apart = measure(shape, batch, DTYPES[precision])
                except RuntimeError as error:
                    print(f"| {name} | {batch} | {first_line(error)} |" + " |" * 6, flush=True)
                    continue
                cells = " | ".join(
                    f"{dense * 1e3:.4f} | {sparse * 1e3:.4f} | {dense / sparse:.2f}"
                    for dense, sparse in (times[:2], times[2:])
                )
                print(f"| {name} | {batch} | {cells} | {apart:.1e} |", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
