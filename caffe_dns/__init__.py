"""dns: train, prune and score Caffe networks on PyTorch.

From Python, `load_net` gives a `Net`, a `torch.nn.Module` that maps a dict of input blobs to a
dict of all blobs, and `prune` prunes any other module while it trains. The command line is `dns`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes longer than the program has before it heeds signals
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from typing import Any

    import torch

    from caffe_dns.errors import CaffeError
    from caffe_dns.net import Net
    from caffe_dns.surgery.modules import Pruner, prune

__version__ = "0.1.0"
__all__ = ["CaffeError", "Net", "Pruner", "load_net", "prune"]

#: Where these are. Not before one is asked for: PyTorch takes a second to load, and `dns` heeds
#: signals first.
_PLACES = {
    "CaffeError": "caffe_dns.errors",
    "Net": "caffe_dns.net",
    "Pruner": "caffe_dns.surgery.modules",
    "prune": "caffe_dns.surgery.modules",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        from importlib import import_module

        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_net(
    definition: str | Path,
    phase: str = "TEST",
    weights: str | Path | Sequence[str | Path] | None = None,
    surgery: bool | None = True,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    level: int = 0,
    stages: Sequence[str] = (),
    allow_python_layers: bool = False,
    activations: torch.dtype | None = None,
    quiet: bool = True,
    sparse: bool = False,
    decode_on_gpu: bool = False,
) -> Net:
    """Build the net of a prototxt file and load its weights.

    Raises CaffeError for anything wrong with the files.

    - `phase`: TRAIN or TEST.
    - `weights`: a .caffemodel, .caffemodel.h5 or .dnsz file, or several, loaded in this order. The
      net's layers get the sizes that a .dnsz file has. None leaves what the fillers draw.
    - `surgery`: whether Convolution and InnerProduct layers own masks. None leaves it to the
      definition, which asks for masks by any field about them.
    - `device`: where the net computes, such as "cuda:0".
    - `seed`: what fillers and layers such as Dropout draw from.
    - `level`, `stages`: which layers to build, by their rules `include` and `exclude`.
    - `allow_python_layers`: whether layers of the type Python may run their code.
    - `activations`: torch.bfloat16 to compute most layers in that; None for float32.
    - `quiet`: whether to keep Caffe's log lines away.
    - `sparse`, for TEST only: skip weights that are 0, where that is faster. On a CPU, several
      layers then run as one, and the blobs between them are not returned. On a GPU it takes
      `activations` of torch.bfloat16 and weights in the pattern 2:4. The weights must not change
      afterwards.
    - `decode_on_gpu`: whether the GPU decodes the JPEGs of Data layers.
    """
    from contextlib import nullcontext
    from pathlib import Path

    import torch

    from caffe_dns import log
    from caffe_dns.errors import CaffeError
    from caffe_dns.layers.base import Context
    from caffe_dns.net import Net
    from caffe_dns.net.definition import asks_for_surgery, with_state
    from caffe_dns.proto.caffe_pb2 import Phase
    from caffe_dns.proto.upgrade import read_net
    from caffe_dns.sparse.plan import use_sparse
    from caffe_dns.weights import copy_trained_layers, fit_definition, load_definition_blobs

    if phase not in {name for name, _ in Phase.items()}:
        raise CaffeError(f"unknown phase '{phase}'; known: TRAIN, TEST")
    # Of this thread alone: others may load nets, too.
    with log.hushed if quiet else nullcontext():
        parsed = read_net(str(definition))
        files = [str(f) for f in ([weights] if isinstance(weights, str | Path) else weights or ())]
        fitted = fit_definition(parsed.message, files)
        param = with_state(fitted, Phase.Value(phase), level, stages)
        context = Context(
            device=torch.device(device),
            seed=seed,
            surgery=asks_for_surgery(param) if surgery is None else surgery,
            allow_python_layers=allow_python_layers,
            activations=activations,
            decode_on_gpu=decode_on_gpu,
        )
        # Lines are counted in the file's layers, all of them.
        positions = parsed.positions if len(fitted.layer) == len(parsed.message.layer) else None
        net = Net(param, context, file=parsed.file, positions=positions)
        load_definition_blobs(net)
        for file in files:
            copy_trained_layers(net, file)
        if sparse:
            use_sparse(net)
    return net
