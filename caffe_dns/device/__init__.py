"""The device that everything runs on: which one, how exactly it computes, how memory lies on it,
which of two ways to compute the same is the faster.

Here belongs what knows devices and nothing of nets; kernels for them are in `kernels`, several
processes in `parallel`. Read `selection` first.
"""

from caffe_dns.device.memory_format import laid_out_as
from caffe_dns.device.precision import use_precision
from caffe_dns.device.selection import CPU, parse_gpus, scoring_device, training_device, use_gpu

__all__ = [
    "CPU",
    "laid_out_as",
    "parse_gpus",
    "scoring_device",
    "training_device",
    "use_gpu",
    "use_precision",
]
