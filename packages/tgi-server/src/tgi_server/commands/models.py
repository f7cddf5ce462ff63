"""`tgi models`."""

from __future__ import annotations

import click


@click.command("models")
def command() -> None:
    """List model families and what runs them: optimised, fallback, or not supported and why."""
    from tgi_core.engine.explain import models_report

    click.echo(models_report())
