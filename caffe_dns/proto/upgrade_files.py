"""Upgrades definition and model files, as Caffe's upgrade tools do.

What an upgrade changes is in `upgrade`. Nothing else is filled in: a solver without a
snapshot_prefix stays without one.
"""

from __future__ import annotations

from caffe_dns import log
from caffe_dns.proto.caffe_pb2 import NetParameter, SolverParameter
from caffe_dns.proto.text import read_binary, read_text, write_binary, write_text
from caffe_dns.proto.upgrade import net_needs_upgrade, upgrade_net_as_needed, upgrade_solver


def upgrade_net_text(source: str, target: str) -> bool:
    """Write the upgraded net definition; False when settings had to be left behind."""
    net, complete = _upgrade(read_text(source, NetParameter).message, source)
    write_text(target, net)
    log.info(f"Wrote upgraded NetParameter text proto to {target}")
    return complete


def upgrade_net_binary(source: str, target: str) -> bool:
    """Write the upgraded weights; False when settings had to be left behind."""
    net, complete = _upgrade(read_binary(source, NetParameter), source)
    write_binary(target, net)
    log.info(f"Wrote upgraded NetParameter binary proto to {target}")
    return complete


def upgrade_solver_text(source: str, target: str) -> None:
    """Write the upgraded solver definition."""
    solver = read_text(source, SolverParameter).message
    if solver.HasField("solver_type"):
        upgrade_solver(solver, source)
    else:
        log.error(f"File already in latest proto format: {source}")
    write_text(target, solver)
    log.info(f"Wrote upgraded SolverParameter text proto to {target}")


def _upgrade(net: NetParameter, source: str) -> tuple[NetParameter, bool]:
    if not net_needs_upgrade(net):
        log.error(f"File already in latest proto format: {source}")
        return net, True
    net, complete = upgrade_net_as_needed(net, source)
    if not complete:
        log.error("Encountered error(s) while upgrading prototxt; see details above.")
    return net, complete
