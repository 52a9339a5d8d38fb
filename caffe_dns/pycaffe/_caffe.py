"""`caffe._caffe`: the names that pycaffe has from C++ (`_caffe.cpp`)."""

from caffe_dns.blob import Blob, BlobVec
from caffe_dns.layers.python import UserLayer as Layer
from caffe_dns.proto.caffe_pb2 import LayerParameter, SolverParameter
from caffe_dns.pycaffe.mode import (
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
from caffe_dns.pycaffe.nccl import NCCL, has_nccl
from caffe_dns.pycaffe.net import Net
from caffe_dns.pycaffe.solver import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    Solver,
    get_solver,
)
from caffe_dns.pycaffe.timer import Timer

#: The version of Caffe whose interface this is.
__version__ = "1.0.0"

__all__ = [
    "NCCL",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Blob",
    "BlobVec",
    "Layer",
    "LayerParameter",
    "NesterovSolver",
    "Net",
    "RMSPropSolver",
    "SGDSolver",
    "Solver",
    "SolverParameter",
    "Timer",
    "get_solver",
    "has_nccl",
    "init_log",
    "layer_type_list",
    "log",
    "set_device",
    "set_mode_cpu",
    "set_mode_gpu",
    "set_multiprocess",
    "set_random_seed",
    "set_solver_count",
    "set_solver_rank",
    "solver_count",
    "solver_rank",
]
