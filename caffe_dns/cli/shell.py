"""Completion in shells: commands, flags with one dash or two, file names and known words.

click reads what has been typed from the shell and answers. Here the words are converted to click's
spelling, and the answers back to the user's. `dns completion SHELL` prints the script that connects
the two.
"""

from __future__ import annotations

from copy import copy
from typing import ClassVar

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

#: What flags and arguments of these names in their help are; all others of arguments are files.
_FOLDERS = ("DIR",)
_FILES = ("FILE", "FILES", "[FILE]", "PROTOTXT", "NPY")
_NOT_FILES = ("blob_names", "dataset_names")
#: Words that a flag or an argument takes, where these are few.
_WORDS = {
    "precision": ("fp32", "tf32", "bf16"),
    "backend": ("lmdb", "leveldb"),
    "db_type": ("lmdb", "leveldb"),
    "mode": ("CPU", "GPU"),
    "phase": ("TRAIN", "TEST"),
    "rankdir": ("LR", "RL", "TB", "BT"),
    "format_name": ("caffemodel", "onnx", "safetensors", "compact"),
    "sigint_effect": ("snapshot", "stop", "none"),
    "sighup_effect": ("snapshot", "stop", "none"),
}


class _OneDash(ShellComplete):
    """What gflags' spelling needs: `-solver` is `--solver`, with one dash in the answers, too."""

    #: Whether the shell wants the `-backend=` before the value in the answer.
    whole_words: ClassVar[bool] = True

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        one_dash = incomplete.startswith("-") and not incomplete.startswith("--")
        words = [_two_dashes(word) for word in args]
        items = super().get_completions(words, _two_dashes(incomplete))
        flag, equals, _ = incomplete.rpartition("=")
        for item in items:
            if equals and self.whole_words and item.type == "plain":
                item.value = f"{flag}={item.value}"
            elif one_dash and not equals:
                item.value = item.value.removeprefix("-")
        return items


class DnsBash(_OneDash, BashComplete):
    name: ClassVar[str] = "bash"
    whole_words = False

    def get_completion_args(self) -> tuple[list[str], str]:
        """bash makes three words of `-solver=FILE`, of which the last one is completed."""
        words, last = super().get_completion_args()
        if last == "=":
            words, last = [*words, last], ""
        if len(words) > 1 and words[-1] == "=":
            words, last = words[:-2], f"{words[-2]}={last}"
        return words, last

    @staticmethod
    def _check_version() -> None:
        """bash has had what the script uses since 4.4, of 2016; asking it takes as long as all."""


class DnsZsh(_OneDash, ZshComplete):
    name: ClassVar[str] = "zsh"
    #: Of `-solver=FILE`, the file's name alone is completed.
    source_template = ZshComplete.source_template.replace(
        "_path_files", "compset -P '-*='; _path_files"
    )


class DnsFish(_OneDash, FishComplete):
    name: ClassVar[str] = "fish"
    #: What completes files knows nothing of the `-solver=` before their names. click 8.4.0's own
    #: has a line break within a line.
    source_template = r"""
function %(complete_func)s
    set -l flag (string match -r "^-[^=]*=" -- (commandline -ct); or echo)
    set -l asked %(complete_var)s=fish_complete
    set -a asked COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t)
    for answer in (env $asked %(prog_name)s)
        set -l parts (string split -m 1 , -- $answer)
        switch $parts[1]
            case dir
                string replace -r "^" -- $flag (__fish_complete_directories $parts[2])
            case file
                string replace -r "^" -- $flag (__fish_complete_path $parts[2])
            case plain
                echo $parts[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""

    def format_completion(self, item: CompletionItem) -> str:
        described = f"\t{item.help}" if item.help else ""
        return f"{item.type},{item.value}{described}"


SHELLS: dict[str, type[ShellComplete]] = {"bash": DnsBash, "zsh": DnsZsh, "fish": DnsFish}


def prepare(command: click.Command) -> click.Command:
    """A copy whose flags and arguments complete file names and words where they take some."""
    prepared = copy(command)
    prepared.params = [copy(param) for param in command.params]
    for param in prepared.params:
        if type(param.type) is not click.types.StringParamType:
            continue
        kind = _kind_of(param)
        if param.name in _WORDS:
            param.type = click.Choice(_WORDS[param.name])
        elif kind:
            param.type = _Files(kind)
    return prepared


def register() -> None:
    """Let click use these for the shells that it knows."""
    for cls in SHELLS.values():
        add_completion_class(cls)


def script(shell: str, group: click.Command) -> str:
    """What this shell has to be told once."""
    return SHELLS[shell](group, {}, "dns", "_DNS_COMPLETE").source()


class _Files(click.types.StringParamType):
    """A text that the shell completes as a file's name, or as a folder's."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type=self.kind)]


def _kind_of(param: click.Parameter) -> str | None:
    if isinstance(param, click.Argument):
        return None if param.name in _NOT_FILES else "file"
    if param.metavar in _FOLDERS:
        return "dir"
    return "file" if param.metavar in _FILES else None


def _two_dashes(word: str) -> str:
    single = word.startswith("-") and not word.startswith("--") and word != "-"
    # Numbers are values.
    return f"-{word}" if single and not word[1:2].isdigit() else word
