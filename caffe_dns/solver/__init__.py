"""Training: the loop, its iterations and updates, its snapshots, and who looks on.

Here belongs what happens from a solver definition to trained weights; masks are renewed by
`surgery`, gradients shared by `parallel`. In order: `solver` (the loop), `nets`, `iteration`,
`update_rules`, `snapshot`, `state_file`, `observers`, `signals`.
"""

from caffe_dns.solver.solver import Solver

__all__ = ["Solver"]
