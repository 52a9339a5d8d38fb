"""Fields of forks that change nothing here: details of the computation, or values that mean "off".

Definitions that have them are read as if they did not. With any value other than those listed, they
are treated as fields that dns does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

#: Words, or numbers.
Values: TypeAlias = "tuple[str | float, ...]"

_OFF: Values = ("false", "False", "f", "0")
_ON: Values = ("true", "True", "t", "1")


@dataclass(frozen=True)
class Idle:
    """A field that changes nothing with these values, or with any (None).

    With `rounds`, other values than these say how exactly the fork computes, which is not the
    definition's business here. `is_message` fields have a block of settings, whatever it says.
    """

    values: Values | None = None
    rounds: bool = False
    is_message: bool = False

    def takes(self, text: str) -> bool:
        """Whether the field changes no result with the value that reads `text`."""
        return self.rounds or self.values is None or self.is_exact(text)

    def is_exact(self, text: str) -> bool:
        """Whether the fork computes as exactly as Caffe does with this value."""
        if self.values is None:
            return True
        numbers = [value for value in self.values if not isinstance(value, str)]
        return text in self.values or (bool(numbers) and _number(text) in numbers)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


_ANY = Idle()
_IS_OFF = Idle(_OFF)
_IS_ON = Idle(_ON)
_TYPE = Idle(("FLOAT",), rounds=True)

_FIELDS: dict[str, dict[str, Idle]] = {
    "NetParameter": {
        # NVCaffe. A scale of gradients is divided out again; it is for what FLOAT16 cannot hold.
        "default_forward_type": _TYPE,
        "default_backward_type": _TYPE,
        "default_forward_math": _TYPE,
        "default_backward_math": _TYPE,
        "global_grad_scale": _ANY,
        "global_grad_scale_adaptive": _ANY,
        "default_conv_algos_override": _ANY,
        "default_cudnn_math_override": _ANY,
        "reduce_buckets": _ANY,
        "eltwise_mem_sharing": _ANY,
        # Intel Caffe; how machines share a net.
        "engine": _ANY,
        "multinode": Idle(is_message=True),
    },
    "LayerParameter": {
        "forward_type": _TYPE,
        "backward_type": _TYPE,
        "forward_math": _TYPE,
        "backward_math": _TYPE,
        "debug": _ANY,
        "cudnn_math_override": _ANY,
        "engine": _ANY,
        # Intel Caffe's whole numbers instead of floats.
        "quantization_param": Idle((), rounds=True, is_message=True),
    },
    # Factors of decays that the solver has, or has not; if it has, that is an error.
    "ParamSpec": {
        "force_mult": _ANY,
        "breadth_decay_mult": _ANY,
        "kernel_shape_decay_mult": _ANY,
        "block_group_lasso": Idle(is_message=True),
    },
    "SolverParameter": {
        "solver_data_type": _TYPE,
        "store_blobs_in_old_format": _ANY,
        "momentum_policy": Idle(("fixed",)),
        "weight_decay_policy": Idle(("fixed",)),
        "larc_turbo": _IS_OFF,
        "test_and_snapshot_last_epochs": Idle((0,)),
        "engine": _ANY,
        "disabled_update": _IS_OFF,
        "test_offset": Idle((0,)),
        "local_lr_auto": _IS_OFF,
        # Of use with local_lr_auto only.
        "local_gw_ratio": _ANY,
        # Of use with breadth_decay, kernel_shape_decay, block_group_decay and force_decay only.
        "breadth_decay": Idle((0,)),
        "kernel_shape_decay": Idle((0,)),
        "block_group_decay": Idle((0,)),
        "force_decay": Idle((0,)),
        "force_type": _ANY,
        "force_decay_type": _ANY,
        "force_direction": _ANY,
        "force_iter": _ANY,
        # Of use with prune_threshold only.
        "prune_threshold": Idle((0,)),
        "max_threshold_factor": _ANY,
        "winograd_sparsity_factor": Idle((0,)),
        "store_sparse_net": _ANY,
    },
    "BNParameter": {
        # Synopsys; PSPNet's kind, which its other fields say.
        "icnet": _IS_ON,
    },
    "BatchNormParameter": {
        "engine": _ANY,
        "relu": _IS_OFF,
        "update_global_stats": _IS_OFF,
    },
    "ConvolutionParameter": {
        # Synopsys; 1 pads by what TensorFlow calls "SAME".
        "pad_type": Idle((0,)),
        "cudnn_convolution_algo_seeker": _ANY,
        "conv_algos_override": _ANY,
        "conv_algorithm": _ANY,
        "relu": _IS_OFF,
        # SkimCaffe: which algorithm.
        "conv_mode": _ANY,
    },
    "InnerProductParameter": {
        "engine": _ANY,
        "relu": _IS_OFF,
        "gemm_mode": _ANY,
        "spmdm_transpose_in": _ANY,
        "spmdm_transpose_out": _ANY,
    },
    "EltwiseParameter": {"engine": _ANY},
    # happynear: of Normalize, which reads its own settings, and of Softmax, which does not read it.
    "SoftmaxParameter": {"normalize_type": _ANY},
    "ConcatParameter": {"engine": _ANY, "per_fla_fuse": _IS_OFF},
    "ReLUParameter": {"fuse": _IS_OFF},
    "DropoutParameter": {
        "engine": _ANY,
        "random_seed": Idle((-1,)),
    },
    # DeepDetect; theta is of use with soft_nms only.
    "NonMaximumSuppressionParameter": {"soft_nms": _IS_OFF, "theta": _ANY},
    "DataParameter": {"threads": _ANY, "parser_threads": _ANY, "cache": _ANY, "precache": _ANY},
    "VideoDataParameter": {"show_data": _IS_OFF, "encoded": _IS_OFF},
    "PoolingParameter": {"avg_include_pad": _IS_ON, "torch_pooling": _IS_OFF},
    "LossParameter": {"label_smoothing": Idle((0,))},
    "ImageDataParameter": {
        "label_divide_factor": Idle((1,)),
        "show_data": _IS_OFF,
        "threads": _ANY,
        "cache": _ANY,
        "precache": _ANY,
    },
    "TransformationParameter": {
        "use_gpu_transform": _ANY,
        "forward_packing": _ANY,
        "random_seed": Idle((-1,)),
        "display": _IS_OFF,
        "num_labels": Idle((0,)),
        "flow": _IS_OFF,
        "bgr2rgb": _IS_OFF,
        "pad": Idle((0,)),
    },
}
#: Values of BVLC's `engine` that only forks have: libraries, which change no result.
_ENGINES = ("MKL2017", "MKLDNN")


def idle_field(message: str, field: str) -> Idle | None:
    """What is known of a field that the message of that name does not have here, or None."""
    return _FIELDS.get(message, {}).get(field)


def is_idle_engine(enum: str, value: str) -> bool:
    """Whether that is a value of an enum `Engine` which says as much as DEFAULT."""
    return enum == "Engine" and value in _ENGINES
