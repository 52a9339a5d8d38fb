"""`dns train`."""

from __future__ import annotations

import click

from caffe_dns.cli import flags
from caffe_dns.cli.lazy import runs
from caffe_dns.cli.sections import SectionedCommand

_EFFECTS = "snapshot, stop (with a snapshot) or none"
#: The flags as the help groups them.
SECTIONS = {
    "What to train": ("solver", "weights", "snapshot", "resume", "level", "stage"),
    "How to compute": ("gpu", "precision", "threads", "decode-on-gpu", "deterministic"),
    "What to prune": (
        *("target-compression", "target-sparsity", "target-macs", "target-latency", "pattern"),
        *("hold-masks", "masks-from-zeros", "bits", "loss-of-accuracy", "no-surgery"),
    ),
    "What to write": ("keep", "report", "tensorboard"),
    "Signals and errors": ("sigint_effect", "sighup_effect", "on-nan", "skip-bad-records"),
    "Extensions": ("allow-python-layers", "import"),
    "Help": ("help",),
}


@click.command(cls=SectionedCommand, sections=SECTIONS)
@click.option(
    "--solver",
    default="",
    metavar="PROTOTXT",
    help="The solver definition (solver.prototxt). Required.",
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
    help="Resume from this solver state or, without FILE, from the newest complete snapshot with "
    "the solver's snapshot_prefix; start from the beginning if there is none yet.",
)
@click.option(
    "--keep",
    type=int,
    metavar="N",
    help="Keep the last N snapshots of this run and remove older ones, but never the newest "
    "complete one. Default: keep all.",
)
@click.option(
    "--gpu",
    default="",
    metavar="IDS",
    help="Train on these GPUs: 0, several separated by commas, or 'all'. Default: the solver's "
    "device_id if it says `solver_mode: GPU`, else the CPU.",
)
@flags.precision
@flags.threads
@flags.level
@flags.stage
@click.option(
    "--sigint_effect",
    default="stop",
    show_default=True,
    metavar="EFFECT",
    help=f"On SIGINT (Ctrl-C): {_EFFECTS}.",
)
@click.option(
    "--sighup_effect",
    default="snapshot",
    show_default=True,
    metavar="EFFECT",
    help=f"On SIGHUP: {_EFFECTS}.",
)
@click.option(
    "--on-nan",
    type=click.Choice(["stop", "warn"]),
    default="stop",
    show_default=True,
    help="When training has diverged: stop, or warn and continue without snapshots.",
)
@click.option(
    "--skip-bad-records",
    type=flags.WholeNumber(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Skip up to N records of a database that cannot be decoded, and list them.",
)
@flags.decode_on_gpu
@click.option(
    "--deterministic",
    is_flag=True,
    help="Compute the same bits in every run on the same GPU, which takes longer.",
)
@flags.no_surgery
@flags.python_layers
@flags.imports
@click.option(
    "--tensorboard",
    default="",
    metavar="DIR",
    help="Write losses, scores and sparsities into this folder for TensorBoard.",
)
@click.option(
    "--report",
    default="",
    metavar="FILE",
    help="Write a page about the run, FILE.html, and keep it up to date; see `dns report`.",
)
@click.option(
    "--target-sparsity",
    default="",
    metavar="SHARE",
    help="Prune this share of the masked parameters: 0.9 of all, or by layer: conv2=0.97,ip1=0.99.",
)
@click.option(
    "--target-compression",
    type=flags.Number(min=1),
    metavar="TIMES",
    help="Prune until the model has this many times fewer parameters, such as 108.",
)
@click.option(
    "--target-macs",
    type=flags.Number(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="Prune until this share of the multiply-accumulates is left, such as 0.3.",
)
@click.option(
    "--target-latency",
    default="",
    metavar="SHARE|MS",
    help="Cut filters until a forward pass of one item takes this share of its time (0.3), or this "
    "long (2.5ms), as measured on this device.",
)
@click.option(
    "--pattern",
    default="",
    metavar="N:M|1xK|filter",
    help="Prune in a pattern: keep at most N of M neighbouring inputs of an output (2:4), prune K "
    "neighbours together (1x4), or whole filters with the weights that read them (filter).",
)
@click.option("--hold-masks", is_flag=True, help="Train without changing the masks.")
@flags.bits(
    1,
    "Train without changing the masks, and let the weights of each layer share 2 to the power of B "
    "values, B from 1 to 8; auto finds a B for each layer by scores of the test net.",
)
@click.option(
    "--masks-from-zeros",
    is_flag=True,
    help="Start with masks that prune what is zero in the given weights.",
)
@flags.unused("phase", "model")
# Unused as well, but a number that must be one.
@click.option("--iterations", default=50, hidden=True)
@runs("train")
def command() -> None:
    """Train, finetune or prune a model.

    Convolution and InnerProduct layers are pruned while they train, unless their definition says
    `sparsity_term: false` or --no-surgery is given. At every display, a row about each mask goes
    into SNAPSHOT_PREFIX_surgery.csv. At the end, the pruned net is also written without masks, as
    SNAPSHOT_PREFIX_pruned.caffemodel and .prototxt.

    On several GPUs, each takes batches of the definition's size, and gradients are averaged.
    """
