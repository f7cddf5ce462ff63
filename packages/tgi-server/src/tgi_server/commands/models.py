"""`tgi models`."""

from __future__ import annotations

import sys

import click

from tgi_core.errors import TGIError


@click.command("models")
def command() -> None:
    """List model families and what runs them: optimised, fallback, or not supported and why."""
    from tgi_core.engine.explain import models_report

    try:
        click.echo(models_report())
    except TGIError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
