"""Training: the loop, its iterations and updates, its snapshots, and its observers.

Here belongs what happens between a solver definition and trained weights; masks are renewed by
`surgery`, gradients are shared by `parallel`. In order: `solver` (the loop), `nets`, `iteration`,
`update_rules`, `snapshot`, `state_file`, `observers`, `signals`.
"""

from caffe_dns.solver.solver import Solver

__all__ = ["Solver"]
