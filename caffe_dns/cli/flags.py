"""Flags that several actions share, with Caffe's names and defaults (tools/caffe.cpp)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from caffe_dns.encoding import in_message
from caffe_dns.errors import CaffeError
from caffe_dns.plugins import import_plugin

F = TypeVar("F", bound=Callable[..., Any])
#: Value of --bits: find them.
AUTO = "auto"
#: Default of --loss-of-accuracy.
DEFAULT_LOSS = 0.01


def together(*parameters: Callable[[Any], Any]) -> Callable[[F], F]:
    """Several arguments and flags as one decorator, in the order in which help lists them."""

    def add(function: F) -> F:
        for parameter in reversed(parameters):
            function = parameter(function)
        return function

    return add


class WholeNumber(click.IntRange):
    """A whole number between two bounds."""

    name = "integer"  # by default, click says "not a valid integer range"


class Number(click.FloatRange):
    """A number between two bounds."""

    name = "number"


#: Of commands that run on one GPU. As in Caffe, several may be named, and the first is used.
gpu = click.option(
    "--gpu",
    default="",
    metavar="ID",
    help="Run on this GPU, such as 0. Default: the CPU.",
)
model = click.option(
    "--model",
    default="",
    metavar="PROTOTXT",
    help="The model definition (train_val.prototxt). Required.",
)
weights = click.option(
    "--weights",
    default="",
    metavar="FILES",
    help="Trained weights (.caffemodel, .caffemodel.h5, .dnsz), several separated by commas.",
)
iterations = click.option(
    "--iterations",
    default=50,
    show_default=True,
    metavar="N",
    help="The number of iterations to run, one batch each.",
)
precision = click.option(
    "--precision",
    default="",
    metavar="KIND",
    help="How to compute: fp32, tf32 or bf16. Default: tf32 on a GPU that has it, else fp32.",
)


def _check_level(ctx: click.Context, option: click.Parameter, value: int) -> int:
    """Refuse values beyond 32 bits. As the type of the flag, help would show the bounds."""
    return WholeNumber(-(2**31), 2**31 - 1).convert(value, option, ctx)


level = click.option(
    "--level",
    callback=_check_level,
    default=0,
    show_default=True,
    metavar="N",
    help="Build the layers whose rules (include, exclude) admit this level.",
)
stage = click.option(
    "--stage",
    default="",
    metavar="NAMES",
    help="Build the layers whose rules admit these stages, several separated by commas.",
)
backend = click.option(
    "--backend",
    default="lmdb",
    show_default=True,
    metavar="KIND",
    help="The kind of database: lmdb or leveldb.",
)
batch = click.option(
    "--batch",
    default=1,
    show_default=True,
    metavar="N",
    help="How many items the inputs take at once.",
)
shape = click.option(
    "--shape",
    multiple=True,
    metavar="C,H,W",
    help="The shape of an item, needed where the data are not at hand; once for each data layer. "
    "The shape of a label that is not a single number follows a colon: 3,500,500:1,500,500.",
)
threads = click.option(
    "--threads",
    type=WholeNumber(1, 1024),
    metavar="N",
    help="The number of threads that compute on the CPU. Default: OMP_NUM_THREADS, or one for each "
    "core.",
)
all_losses = click.option(
    "--all-losses",
    is_flag=True,
    help="Also keep the outputs of auxiliary classifiers, whose losses have a lower loss_weight.",
)

shrink = click.option(
    "--shrink",
    is_flag=True,
    help="Remove channels that are constant or that no layer reads; outputs stay the same.",
)
fold = click.option(
    "--fold",
    is_flag=True,
    help="Merge BatchNorm, Scale and Bias layers into the weights of the layers before them.",
)
sparse = click.option(
    "--sparse",
    is_flag=True,
    help="Skip weights that are 0, in the layers where that is faster; on a GPU only in the "
    "pattern 2:4 and with --precision bf16.",
)
no_surgery = click.option(
    "--no-surgery", is_flag=True, help="Run as plain Caffe does: no masks, no pruning."
)
python_layers = click.option(
    "--allow-python-layers",
    is_flag=True,
    help="Allow the definition's Python layers to run their code.",
)
decode_on_gpu = click.option(
    "--decode-on-gpu",
    is_flag=True,
    help="Let the GPU decode the JPEGs of Data layers, to the same pixels. It needs decoding "
    "units, as an A100 or H100 has.",
)


def _import(ctx: click.Context, option: click.Parameter, modules: tuple[str, ...]) -> None:
    for module in modules:
        import_plugin(module)


imports = click.option(
    "--import",
    multiple=True,
    metavar="MODULE",
    expose_value=False,
    is_eager=True,
    callback=_import,
    help="Import a Python module that adds layer types or the like; can be given several times.",
)


#: How a command prints its results; see `cli.output`.
output = together(
    click.option("--quiet", is_flag=True, help="Print only the result, no log."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, no log."),
)


def switch(name: str, help: str) -> Callable[[F], F]:
    """A boolean flag as gflags has them: --NAME and --noNAME, off unless given."""
    return click.option(f"--{name}/--no{name}", default=False, help=help)


def unused(*names: str) -> Callable[[F], F]:
    """Flags that Caffe's tool accepts with every action, but that this one does not use."""
    return together(*(click.option(f"--{name}", default="", hidden=True) for name in names))


class _BitsType(click.ParamType):
    name = "bits"

    def __init__(self, least: int) -> None:
        self._least = least

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == AUTO:
            return value
        try:
            bits = int(value)
        except ValueError:
            bits = 0
        if not self._least <= bits <= 8:
            self.fail(f"{value!r} is neither {AUTO} nor from {self._least} to 8", param, ctx)
        return bits


def bits(least: int, help: str) -> Callable[[F], F]:
    """--bits, from `least` to 8 or AUTO, and --loss-of-accuracy, which goes with AUTO."""
    return together(
        click.option("--bits", type=_BitsType(least), metavar="B", help=help),
        click.option(
            "--loss-of-accuracy",
            "loss",
            type=float,
            metavar="LOSS",
            help="How much worse --bits auto may make the score, before training: 0.01 is one "
            f"point of accuracy, or 1 % of a loss. Default: {DEFAULT_LOSS:g}.",
        ),
    )


def check_iterations(value: int) -> None:
    """Raise CaffeError for less than one."""
    if value < 1:
        raise CaffeError(f"-iterations must be at least 1, not {value}")


def check_loss_of_accuracy(value: float) -> None:
    """Raise CaffeError for a value outside [0, 1)."""
    if not 0 <= value < 1:
        raise CaffeError(f"--loss-of-accuracy must be at least 0 and below 1, not {value:g}")


def stages(flag: str) -> list[str]:
    """The stages of a flag value, split as Caffe does: an empty flag is one empty stage."""
    return in_message(flag).split(",")
