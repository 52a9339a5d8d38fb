"""`dns demo`: runs the commands that a newcomer would type."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import click

from caffe_dns.cli import glog

_LENET = "models/lenet"
_STEPS = (
    ("Get the definitions", "models lenet"),
    ("Get MNIST", "get_mnist"),
    (
        "Train LeNet-5, without surgery",
        f"train --solver {_LENET}/solver.prototxt --no-surgery",
    ),
    (
        "Prune it: connections are cut and spliced back while training goes on",
        f"train --solver {_LENET}/prune_solver.prototxt --weights "
        f"{_LENET}/lenet_iter_6000.caffemodel",
    ),
    (
        "Score the dense model",
        f"test --model {_LENET}/train_val.prototxt --no-surgery --weights "
        f"{_LENET}/lenet_iter_6000.caffemodel --iterations 100 --quiet",
    ),
    (
        "Score the pruned model, and say what is left of each layer",
        f"test --model {_LENET}/prune_train_val.prototxt --weights "
        f"{_LENET}/lenet_pruned_iter_4000.caffemodel --iterations 100 --quiet",
    ),
)


def run() -> int:
    """Do what `dns demo` is asked for; returns the exit code of the first command that fails."""
    _, logging = glog.take(click.get_current_context().obj)
    environment = {**os.environ, **{f"GLOG_{name}": value for name, value in logging.items()}}
    for title, command in _STEPS:
        click.echo(f"\n== {title}\ndns {command}", err=True)
        program = [sys.executable, "-m", "caffe_dns", *shlex.split(command)]
        code = subprocess.call(program, env=environment)
        if code:
            return code
    return 0
