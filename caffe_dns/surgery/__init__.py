"""Dynamic network surgery: when masks are renewed, by which thresholds, and with what result.

The rules themselves are in `mask_rules`, the masks in the layers (`layers.masked`). Here belongs
what decides about them during training, and the study of how far a net can be pruned
(`sensitivity`). In order: `stages`, `schedule`, `surgeon`, `masked_layers`, `patterns`, `filters`,
`renewal`, `ranking`, `target`; then `sharing`, for weights that share values, and `bits`, for how
many; then `prunable_layers`, and `modules`, for PyTorch modules that are not nets of Caffe.
"""

from caffe_dns.surgery.masked_layers import Count, MaskedLayer, find_masked_layers
from caffe_dns.surgery.prunable_layers import PrunableLayer, find_prunable_layers
from caffe_dns.surgery.stages import Stage, plan
from caffe_dns.surgery.surgeon import Surgeon

__all__ = [
    "Count",
    "MaskedLayer",
    "PrunableLayer",
    "Stage",
    "Surgeon",
    "find_masked_layers",
    "find_prunable_layers",
    "plan",
]
