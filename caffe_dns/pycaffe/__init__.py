"""pycaffe's Python interface on top of dns: `import caffe_dns.pycaffe as caffe`.

After `install_as_caffe()`, `import caffe` gives this package, too; in Python layers and in programs
that `python -m caffe_dns.pycaffe` runs it does so by itself. Beyond pycaffe there are `set_surgery`
and `allow_python_layers`.
"""

from caffe_dns.proto.caffe_pb2 import TEST, TRAIN
from caffe_dns.pycaffe import io, proto
from caffe_dns.pycaffe._caffe import (
    NCCL,
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    Layer,
    NesterovSolver,
    Net,
    RMSPropSolver,
    SGDSolver,
    Timer,
    __version__,
    get_solver,
    has_nccl,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from caffe_dns.pycaffe.alias import install_as_caffe
from caffe_dns.pycaffe.classifier import Classifier
from caffe_dns.pycaffe.detector import Detector
from caffe_dns.pycaffe.mode import allow_python_layers, heed_environment, set_surgery
from caffe_dns.pycaffe.net_spec import NetSpec, layers, params, to_proto

__all__ = [
    "NCCL",
    "TEST",
    "TRAIN",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Classifier",
    "Detector",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "Timer",
    "__version__",
    "allow_python_layers",
    "get_solver",
    "has_nccl",
    "init_log",
    "install_as_caffe",
    "io",
    "layer_type_list",
    "layers",
    "log",
    "params",
    "proto",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "set_surgery",
    "solver_count",
    "solver_rank",
    "to_proto",
]

heed_environment()
