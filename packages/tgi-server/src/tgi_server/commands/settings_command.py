"""A command whose options are the fields of `Settings`."""

from __future__ import annotations

import os
import sys

import click

from tgi_server.commands import version
from tgi_server.settings import TABLE, Loaded, Setting, SettingsError, load_settings

VERSION_OPTIONS = ("-V", "--version")


class SettingsCommand(click.Command):
    """Reads its options through `load_settings`, which reports every problem at once; `--help` lists the table."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Leave the options to `load_settings`, except --help and those that the command itself declares."""
        ctx.params = {param.name or "": False for param in self.params}
        rest = []
        for argument in args:
            own = next((param for param in self.params if argument in param.opts), None)
            if argument in ctx.help_option_names:
                click.echo(ctx.get_help())
                ctx.exit()
            elif argument in VERSION_OPTIONS:
                click.echo(version.TEXT)
                ctx.exit()
            elif own is not None:
                ctx.params[own.name or ""] = True
            else:
                rest.append(argument)
        ctx.params["loaded"] = load_or_exit(rest)
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table, by section."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for setting in TABLE:
            sections.setdefault(setting.section, []).append((_spelling(setting), _help(setting)))
        for section, rows in sections.items():
            with formatter.section(section):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


def load_or_exit(arguments: list[str]) -> Loaded:
    """The settings; problems go to standard error and end the program with status 2."""
    try:
        return load_settings(arguments, os.environ)
    except SettingsError as error:
        for problem in error.problems:
            click.echo(f"error: {problem}", err=True)
        sys.exit(2)


def _spelling(setting: Setting) -> str:
    flags = ", ".join(setting.flags)
    return flags if setting.is_bool else f"{flags} {setting.metavar}"


def _help(setting: Setting) -> str:
    default = setting.default
    shown = "" if default in (None, False, "", (), {}) else f" [default: {default}]"
    return f"{setting.doc} [{setting.variables[0]}]{shown}"
