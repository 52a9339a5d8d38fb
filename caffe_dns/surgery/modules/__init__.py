"""Surgery for any `torch.nn.Module`, by the same rules and schedules as for Caffe's nets.

`weights` finds what can be pruned in a module, `adopted` makes layers with masks of it,
`kept_apart` holds what masks take away, `pruner` keeps the masks applied during someone else's
training loop, and `prune_module` is the function that programs call.
"""

from caffe_dns.surgery.modules.prune_module import prune
from caffe_dns.surgery.modules.pruner import Pruner

__all__ = ["Pruner", "prune"]
