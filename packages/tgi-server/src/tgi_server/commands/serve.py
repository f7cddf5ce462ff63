"""`tgi serve`."""

from __future__ import annotations

import sys

import click

from tgi_core.errors import TGIError
from tgi_server.commands.settings_command import SettingsCommand
from tgi_server.launch import CannotListen, launch
from tgi_server.settings import Loaded


@click.command("serve", cls=SettingsCommand, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-e", "--env", is_flag=True, help="Describe this machine and installation, then exit.")
def command(loaded: Loaded, env: bool) -> None:
    """Serve a model over HTTP: text-generation-inference's API and OpenAI's.

    Every option is an environment variable too, and a key of the --config file; options win over both.
    """
    if env:
        from tgi_core.engine.explain import doctor_report

        click.echo(doctor_report())
        return
    try:
        launch(loaded)
    except (CannotListen, TGIError) as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
