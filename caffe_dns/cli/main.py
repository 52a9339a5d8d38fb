"""The command `dns`: finds the action, reads gflags-style flags, and turns errors into one line."""

from __future__ import annotations

import errno
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from json import JSONDecodeError
from traceback import extract_tb

import click

from caffe_dns import __version__, interrupt, log, user_code
from caffe_dns.cli import glog, shell
from caffe_dns.cli.lazy import import_for_good
from caffe_dns.errors import CaffeError, first_line, nearest, shortage

#: Action -> one line of help. Its module in `commands` is imported only when it is called.
ACTIONS: dict[str, str] = {
    "train": "train, finetune or prune a model",
    "test": "score a model",
    "sensitivity": "find out how far each layer can be pruned",
    "time": "benchmark model execution time",
    "device_query": "show GPU diagnostic information",
    "convert_imageset": "make a database of listed image files",
    "convert_annoset": "make a database of images and objects in them",
    "convert_mnist_data": "make a database of MNIST's files",
    "convert_mnist_siamese_data": "make a database of pairs of MNIST's images",
    "convert_cifar_data": "make databases of CIFAR-10's files",
    "compute_image_mean": "compute the mean image of a database",
    "extract_features": "save blobs that a net computes to databases",
    "upgrade_net_proto_text": "bring an old net definition up to date",
    "upgrade_net_proto_binary": "bring old model weights up to date",
    "upgrade_solver_proto_text": "bring an old solver definition up to date",
    "parse_log": "make CSV tables of a training log",
    "classify": "write the scores of images",
    "detect": "write the scores of windows of images",
    "draw_net": "draw the graph of a net",
    "plot": "draw the curves of training logs",
    "report": "make a page of training runs",
    "deploy": "make a deploy.prototxt of a train_val.prototxt",
    "summary": "show the layers of a net and their sizes",
    "export": "save a model for others, or compact",
    "doctor": "find out what is wrong before a training begins",
    "models": "copy the net and solver definitions into models/",
    "get_mnist": "fetch MNIST as databases",
    "demo": "train LeNet-5, prune it, and score what is left",
    "completion": "print the script for completion in a shell",
}

# Before torch is imported: it warns of lost connections with pages of C++ frames.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

#: Actions that leave nothing open: PyTorch's libraries need not shut down, which would take a tenth
#: of the time of a short run.
_END_AT_ONCE = ("test", "summary")
#: The errors of writes to a full disk.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

#: A very long word: messages show only its ends.
_LONG_WORD = re.compile(r"(\S{150})\S{200,}(\S{150})")

_SINGLE_DASH = re.compile(r"-[A-Za-z_][\w-]*(=.*)?", re.DOTALL)
_WITH_VALUE = re.compile(r"(--[\w-]+)=(.*)", re.DOTALL)


class Actions(click.Group):
    """The actions of Caffe's tools and our own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(ACTIONS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in ACTIONS:
            return None
        return shell.prepare(_load(name)) if ctx.resilient_parsing else _load(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(ACTIONS.items()))


@click.group(cls=Actions)
@click.version_option(__version__, prog_name="dns")
def dns() -> None:
    """Train, prune and score Caffe networks on PyTorch.

    Flags are Caffe's, with one dash or two: -flag value, -flag=value, --flag value, --flag=value.
    `dns COMMAND --help` lists those of a command. Every command also takes glog's flags -log_dir,
    -minloglevel, -logtostderr, -alsologtostderr and -stderrthreshold.

    \b
    dns train --solver solver.prototxt --weights x.caffemodel -gpu 0
    dns test --model train_val.prototxt --weights x.caffemodel -iterations 100
    """


def normalize(arguments: Sequence[str]) -> list[str]:
    """The arguments in click's form: the action first, two dashes, switches without a value.

    gflags takes one dash or two, flags before the action, and `--flag=true` or `--flag=false` for
    booleans. Raises CaffeError for a boolean that is given anything else.
    """
    given = [f"-{arg}" if _SINGLE_DASH.fullmatch(arg) else arg for arg in arguments]
    given = ["--help" if arg == "--h" else arg for arg in given]
    if given and given[0] == "help":
        given = [*given[1:2], "--help"]
    if given and given[0].startswith("-"):
        at = next((i for i, arg in enumerate(given) if arg in ACTIONS), 0)
        given.insert(0, given.pop(at))
    if given and given[0].replace("-", "_") in ACTIONS:
        given[0] = given[0].replace("-", "_")
    if not given or given[0] not in ACTIONS:
        return given
    switches = _switches(_load(given[0]))
    return [spelling for arg in given for spelling in _spell_switch(arg, switches)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one action and exit: 0 when all went well, 1 when the user's input was wrong.

    `log.LOST_OUTPUT` means that all went well, but lines of stderr were lost.
    """
    code: object = 1
    ends_at_once = False
    lost_before = log.lost_lines
    shell.register()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # names as they are, in whatever encoding
    try:
        _check_folder()
        words = normalize(sys.argv[1:] if arguments is None else arguments)
        given, logging = glog.take(words)
        if given and not given[0].startswith("-") and given[0] not in ACTIONS:
            _unknown_action(given[0])
        else:
            # Without standalone mode, click hands back exit codes and raises its errors. Commands
            # find the arguments in `obj`.
            given = given or ["--help"]
            with glog.heeded(logging, os.environ, given[0]):
                code = dns.main(given, prog_name="dns", standalone_mode=False, obj=words)
            if log.lost_lines > lost_before and not code:
                code = log.LOST_OUTPUT
            ends_at_once = given[0] in _END_AT_ONCE
        sys.stdout.flush()
    except CaffeError as error:
        _complain(str(error))
    except click.UsageError as error:
        _complain(_explain(error))
    except (KeyboardInterrupt, click.Abort):
        code = 130
    except BrokenPipeError:
        # The reader of our output is gone, so nothing more can be printed.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    except OSError as error:
        _complain_of_system(error)
    except (MemoryError, RuntimeError, ImportError, JSONDecodeError) as error:
        lacking = _explain_lack(error)
        if lacking is None:
            raise
        _complain(lacking)
        interrupt.leave(1)
    number = code if isinstance(code, int) else 0
    if ends_at_once and not user_code.has_run:
        interrupt.leave(number)
    sys.exit(number)


def _explain_lack(error: Exception) -> str | None:
    """What is lacking: memory, a package, whole files of a cache; None for another error."""
    if isinstance(error, ModuleNotFoundError):
        name = error.name or ""
        if name.split(".")[0] in ("", "caffe_dns"):
            return None
        return f"the Python module {name} is not installed; 'pip check' lists what is missing"
    if isinstance(error, JSONDecodeError):  # a power failure may leave files of a cache empty
        if library_of(error) != "triton":
            return None
        from caffe_dns.kernels import damaged_folder

        return f"Triton's {damaged_folder()}"
    lacking = shortage(error)
    return None if lacking is None else f"{lacking}: {first_line(error)}"


def _explain(error: click.UsageError) -> str:
    """What is wrong with the flags, with a suggestion."""
    params = error.ctx.command.params if error.ctx else []
    message = error.format_message()
    if isinstance(error, click.NoSuchOption):  # click's suggestions are too liberal
        near = nearest(error.option_name, [name for one in params for name in one.opts])
        message = f"No such option: {error.option_name}{near}"
    elif error.message.startswith("Got unexpected extra argument") and all(
        isinstance(one, click.Option) for one in params
    ):
        files = [one.opts[0] for one in params if one.metavar in ("PROTOTXT", "FILE", "FILES")]
        message += f"; it belongs to a flag: {', '.join(files)}" if files else ""
    command = error.ctx.command_path if error.ctx else "dns"
    return f"{message} ('{command} --help' shows what there is)"


def _check_folder() -> None:
    """Raise CaffeError if the current folder is gone: libraries' messages would mislead."""
    try:
        os.getcwd()
    except OSError as error:
        raise CaffeError(f"the current folder is gone: {error.strerror}; go to another") from None


def _load(action: str) -> click.Command:
    command: click.Command = import_for_good(f"caffe_dns.cli.commands.{action}").command
    return command


def _switches(command: click.Command) -> dict[str, tuple[str | None, str | None]]:
    """Boolean flags by name, with the spellings that set and clear them."""
    return {
        name: (option.opts[0], next(iter(option.secondary_opts), None))
        for option in command.params
        if isinstance(option, click.Option) and option.is_flag
        for name in option.opts
    }


def _spell_switch(arg: str, switches: dict[str, tuple[str | None, str | None]]) -> Iterator[str]:
    """`arg` itself, or for `--switch=value` the switch that means it, if there is any."""
    match = _WITH_VALUE.fullmatch(arg)
    if match is None or match[1] not in switches:
        yield arg
        return
    on, off = switches[match[1]]
    spelling = on if glog.is_true(match[1], match[2]) else off
    if spelling is not None:
        yield spelling


def _complain_of_system(error: OSError) -> None:
    """Report what the system refuses and, if known, for which file."""
    if isinstance(error.filename, str):
        _complain(f"{error.filename}: {error.strerror}")
    elif error.errno in _FULL and (library := library_of(error)):
        _complain(f"a file of {library} cannot be written: {error.strerror}")
    elif error.errno in _FULL:
        _complain(f"what goes to stdout cannot be written: {error.strerror}")
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    else:
        _complain(error.strerror or first_line(error))


def library_of(error: Exception) -> str:
    """The package that raised an error; empty if it was this one, or a write to stdout."""
    for frame in reversed(extract_tb(error.__traceback__)):
        before, _, inside = frame.filename.rpartition("-packages/")
        if before:
            package = inside.split("/")[0]
            return "" if package in ("click", "caffe_dns") else package
    return ""


def _complain(message: str) -> None:
    log.set_sink(None)
    line = _LONG_WORD.sub(r"\1...\2", " ".join(message.splitlines()))
    log.say(f"dns: {log.visible(line)}")


def _unknown_action(name: str) -> None:
    """Suggest a similar action or, as Caffe does, list all of them."""
    meant = nearest(name, list(ACTIONS))
    if not meant:
        log.error("Available caffe actions:")
        for action in sorted(ACTIONS):
            log.error(f"\t{action}")
    log.fatal(f"Unknown action: {name}{meant}")
