"""`tgi config show`."""

from __future__ import annotations

import click

from tgi_server.commands.settings_command import SettingsCommand
from tgi_server.settings import Loaded


@click.group("config")
def command() -> None:
    """Show the settings and where each comes from."""


@command.command("show", cls=SettingsCommand)
@click.option("--sources", is_flag=True, help="Name the flag, variable or file of each value.")
def show(loaded: Loaded, sources: bool) -> None:
    """Print every setting as `tgi serve` would read it here."""
    values = loaded.settings.model_dump()
    for name, value in values.items():
        source = f"  # {loaded.sources.get(name, 'default')}" if sources else ""
        click.echo(f"{name} = {value}{source}")
    for note in loaded.notes:
        click.echo(f"note: {note}", err=True)
