"""Groups the flags in a command's help under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


class SectionedCommand(click.Command):
    """A command whose help has a section of flags for each heading; `sections` names the flags."""

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[str]], **attributes: Any
    ) -> None:
        super().__init__(*args, **attributes)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        flags = {name[2:]: param for param in self.get_params(ctx) for name in param.opts}
        for heading, names in self.sections.items():
            records = [flags[name].get_help_record(ctx) for name in names]
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record is not None])
