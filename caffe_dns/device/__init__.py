"""The device: which one to use, how precisely it computes, and how memory is laid out on it.

Here belongs what knows devices but not nets, including the choice of the faster of two ways to
compute something. Kernels are in `kernels`, several processes in `parallel`. Read `selection`
first.
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
