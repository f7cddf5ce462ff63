"""`tgi plugins`."""

from __future__ import annotations

import click


@click.command("plugins")
def command() -> None:
    """List plugins: loaded, blocked, incompatible or failed, and why."""
    from tgi_core.engine.explain import plugins_report

    click.echo(plugins_report())
