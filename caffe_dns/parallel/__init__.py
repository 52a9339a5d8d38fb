"""Several processes that train one net: who they are, and what they exchange.

Here belongs what goes between ranks; the processes are started by `cli.launch`. In order: `world`
(what the environment says), `ranks`, `averaging` and `sufficient_factors` (gradients),
`peer_memory` (between GPUs of one host), `heartbeat` (which ranks are alive).
"""

from caffe_dns.parallel.averaging import GradientAverage
from caffe_dns.parallel.ranks import JoinedRanks, Ranks
from caffe_dns.parallel.sufficient_factors import share_gradients
from caffe_dns.parallel.world import World, find_world

__all__ = [
    "GradientAverage",
    "JoinedRanks",
    "Ranks",
    "World",
    "find_world",
    "share_gradients",
]
