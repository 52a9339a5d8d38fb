"""`dns completion`."""

from __future__ import annotations

import click

from caffe_dns.cli.shell import SHELLS, script


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that lets a shell complete the commands, flags and file names of dns.

    \b
    eval "$(dns completion bash)"                                in ~/.bashrc
    eval "$(dns completion zsh)"                                 in ~/.zshrc
    dns completion fish > ~/.config/fish/completions/dns.fish
    """
    click.echo(script(shell, ctx.find_root().command))
