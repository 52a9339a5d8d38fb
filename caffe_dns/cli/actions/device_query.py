"""`dns device_query` (tools/caffe.cpp)."""

from __future__ import annotations

import torch

from caffe_dns import log
from caffe_dns.cli.output import Output, with_output
from caffe_dns.device.cuda_driver import Attribute, device_attributes
from caffe_dns.device.selection import parse_gpus
from caffe_dns.errors import CaffeError

_LABEL_WIDTH = 31


@with_output
def run(gpu: str, output: Output, **unused: object) -> None:
    """Do what `dns device_query` is asked for, by the values of its flags."""
    if not torch.cuda.device_count():
        raise CaffeError("there is no GPU that PyTorch can use")
    gpus = parse_gpus(gpu)
    log.info(f"Querying GPUs {gpu}")
    found = [_properties(device) for device in gpus]
    for device in found:
        for label, value in device.items():
            output.log(f"{label + ':':{_LABEL_WIDTH}}{value}")
    output.result([{_key(label): value for label, value in one.items()} for one in found])


def _properties(gpu: int) -> dict[str, object]:
    """What Caffe tells of a GPU, under its labels."""
    properties = torch.cuda.get_device_properties(gpu)
    has = device_attributes(gpu)
    block = [has[a] for a in Attribute if a.name.startswith("MAX_BLOCK_DIM")]
    grid = [has[a] for a in Attribute if a.name.startswith("MAX_GRID_DIM")]
    return {
        "Device id": gpu,
        "Major revision number": properties.major,
        "Minor revision number": properties.minor,
        "Name": properties.name,
        "Total global memory": properties.total_memory,
        "Total shared memory per block": has[Attribute.MAX_SHARED_MEMORY_PER_BLOCK],
        "Total registers per block": has[Attribute.MAX_REGISTERS_PER_BLOCK],
        "Warp size": has[Attribute.WARP_SIZE],
        "Maximum memory pitch": has[Attribute.MAX_PITCH],
        "Maximum threads per block": has[Attribute.MAX_THREADS_PER_BLOCK],
        "Maximum dimension of block": ", ".join(map(str, block)),
        "Maximum dimension of grid": ", ".join(map(str, grid)),
        "Clock rate": has[Attribute.CLOCK_RATE],
        "Total constant memory": has[Attribute.TOTAL_CONSTANT_MEMORY],
        "Texture alignment": has[Attribute.TEXTURE_ALIGNMENT],
        "Concurrent copy and execution": _yes_or_no(has[Attribute.GPU_OVERLAP]),
        "Number of multiprocessors": has[Attribute.MULTIPROCESSOR_COUNT],
        "Kernel execution timeout": _yes_or_no(has[Attribute.KERNEL_EXEC_TIMEOUT]),
    }


def _key(label: str) -> str:
    return label.lower().replace(" ", "_")


def _yes_or_no(value: int) -> str:
    return "Yes" if value else "No"
