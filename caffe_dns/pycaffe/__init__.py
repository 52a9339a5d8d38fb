"""pycaffe's Python interface on top of dns: `import caffe_dns.pycaffe as caffe`.

After `install_as_caffe()`, `import caffe` gives this package, too; in Python layers it does so by
itself. Beyond pycaffe there are `set_surgery` and `allow_python_layers`.
"""

from caffe_dns.layers.python import UserLayer as Layer
from caffe_dns.proto.caffe_pb2 import TEST, TRAIN
from caffe_dns.pycaffe import io, proto
from caffe_dns.pycaffe.alias import install_as_caffe
from caffe_dns.pycaffe.classifier import Classifier
from caffe_dns.pycaffe.mode import (
    allow_python_layers,
    heed_environment,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_random_seed,
    set_surgery,
)
from caffe_dns.pycaffe.net import Net
from caffe_dns.pycaffe.net_spec import NetSpec, layers, params, to_proto
from caffe_dns.pycaffe.solver import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    get_solver,
)

#: The version of Caffe whose interface this is.
__version__ = "1.0.0"

__all__ = [
    "TEST",
    "TRAIN",
    "AdaDeltaSolver",
    "AdaGradSolver",
    "AdamSolver",
    "Classifier",
    "Layer",
    "NesterovSolver",
    "Net",
    "NetSpec",
    "RMSPropSolver",
    "SGDSolver",
    "allow_python_layers",
    "get_solver",
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
    "set_random_seed",
    "set_surgery",
    "to_proto",
]

heed_environment()
