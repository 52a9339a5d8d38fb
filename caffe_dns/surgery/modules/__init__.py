"""Surgery for any `torch.nn.Module`, by the rules and the schedule that nets of Caffe have.

`weights` finds what of a module can be pruned, `adopted` makes layers with masks of it,
`kept_apart` holds what masks take away, `pruner` keeps the masks applied while somebody else
trains, `prune_module` is how a program asks for that.
"""

from caffe_dns.surgery.modules.prune_module import prune
from caffe_dns.surgery.modules.pruner import Pruner

__all__ = ["Pruner", "prune"]
