"""How exactly a net computes: `--precision`.

fp32 is Caffe's arithmetic. tf32 rounds the factors of convolutions and matrix products on GPUs that
have it. bf16 keeps the activations of most layers in bfloat16 as well; parameters, their updates
and everything about surgery stay in float32.
"""

from __future__ import annotations

import torch

from caffe_dns import log
from caffe_dns.errors import CaffeError, nearest

PRECISIONS = ("fp32", "tf32", "bf16")
#: The first generation of NVIDIA's GPUs with TF32 and bfloat16.
_AMPERE = (8, 0)


def use_precision(flag: str, device: torch.device) -> torch.dtype | None:
    """Set the precision that the flag names; by default tf32 on a GPU that has it, else fp32.

    Returns the type of activations where it differs from that of the parameters. Raises CaffeError
    for a precision that is unknown, or that the device does not have.
    """
    if flag and flag not in PRECISIONS:
        raise CaffeError(
            f"--precision: unknown precision '{flag}'{nearest(flag, PRECISIONS)}; known: "
            f"{', '.join(PRECISIONS)}"
        )
    on_gpu = device.type == "cuda"
    modern = on_gpu and torch.cuda.get_device_capability(device) >= _AMPERE
    if flag == "tf32" and not modern:
        raise CaffeError("--precision tf32 needs an NVIDIA GPU of compute capability 8.0 or later")
    if flag == "bf16" and on_gpu and not modern:
        raise CaffeError("--precision bf16 needs a GPU of compute capability 8.0 or later")
    precision = flag or ("tf32" if modern else "fp32")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if on_gpu or flag:
        log.info(f"Precision: {precision}")
    return torch.bfloat16 if precision == "bf16" else None
