"""`dns train`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs

_EFFECTS = "snapshot, stop or none"


@click.command()
@click.option(
    "--solver", default="", metavar="PROTOTXT", help="The solver definition (solver.prototxt)."
)
@flags.weights
@click.option(
    "--snapshot", default="", metavar="FILE", help="The solver state (.solverstate) to resume from."
)
@click.option(
    "--resume",
    is_flag=False,
    flag_value="newest",
    metavar="[FILE]",
    help="Go on from this solver state or, without FILE, from the newest whole snapshot of the "
    "solver's prefix; from the beginning if there is none yet.",
)
@click.option(
    "--keep",
    type=int,
    metavar="N",
    help="Keep the last N snapshots of this run and remove older ones, but never the newest whole "
    "one.",
)
@flags.gpu
@flags.precision
@flags.threads
@flags.level
@flags.stage
@click.option("--sigint_effect", default="stop", show_default=True, help=f"On SIGINT: {_EFFECTS}.")
@click.option(
    "--sighup_effect", default="snapshot", show_default=True, help=f"On SIGHUP: {_EFFECTS}."
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "warn"]),
    default="stop",
    show_default=True,
    help="When training has diverged: stop, or warn and go on without snapshots.",
)
@click.option(
    "--skip-bad-records",
    type=flags.WholeNumber(min=0),
    default=0,
    metavar="N",
    help="Pass over at most N records of a database that cannot be decoded, and list them.",
)
@flags.decode_on_gpu
@click.option(
    "--deterministic",
    is_flag=True,
    help="Give the same bits in every run on the same GPU, which takes longer.",
)
@flags.no_surgery
@flags.python_layers
@flags.imports
@click.option(
    "--tensorboard",
    default="",
    metavar="DIR",
    help="Write losses, scores and sparsities for TensorBoard into this folder.",
)
@click.option(
    "--report",
    default="",
    metavar="FILE",
    help="Keep a page of the run up to date, FILE.html; see `dns report`.",
)
@click.option(
    "--target-sparsity",
    default="",
    metavar="SHARE",
    help="Prune this share of the masked parameters: 0.9, or by layer, conv2=0.97,ip1=0.99.",
)
@click.option(
    "--target-compression",
    type=flags.Number(min=1),
    metavar="TIMES",
    help="Prune until the model has so many times fewer parameters: 108.",
)
@click.option(
    "--target-macs",
    type=flags.Number(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Prune until this share of the multiply-accumulates is left: 0.3.",
)
@click.option(
    "--target-latency",
    default="",
    metavar="SHARE|MS",
    help="Cut filters until a pass of one item takes this share of the time (0.3), or so long "
    "(2.5ms), as measured on this device.",
)
@click.option(
    "--pattern",
    default="",
    metavar="N:M|1xK|filter",
    help="Keep at most N of M neighbouring inputs of an output (2:4), prune K at once (1x4), or "
    "whole filters with the weights that read them (filter).",
)
@click.option("--hold-masks", is_flag=True, help="Train with the masks as they are.")
@flags.bits(
    1,
    "Train with masks as they are, and 2 to the power of B values for the weights of each layer; "
    "auto finds a B for each, by what the test net scores before training.",
)
@click.option(
    "--masks-from-zeros", is_flag=True, help="Begin with masks of the zeros in the weights given."
)
@flags.unused("phase", "model")
# Unused as well, but a number that must be one.
@click.option("--iterations", default=50, hidden=True)
@runs("train")
def command() -> None:
    """Train, finetune or prune a model.

    Layers of the types Convolution and InnerProduct are pruned while they train, unless their
    definition says `sparsity_term: false`, or --no-surgery is given. At every display, the state of
    their masks goes into the table SNAPSHOT_PREFIX_surgery.csv. At the end, a pruned net is left
    without masks in SNAPSHOT_PREFIX_pruned.caffemodel and .prototxt.

    On several GPUs, each trains on batches of the definition's size, and gradients are averaged.
    """
