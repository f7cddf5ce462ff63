"""`tgi kernels`."""

from __future__ import annotations

import sys

import click

from tgi_core.errors import TGIError


@click.command("kernels")
@click.option("--model", help="Say what was chosen for this model, and why the others were not.")
def command(model: str | None) -> None:
    """List kernels, or what was chosen for a model and why."""
    from tgi_core.engine.explain import kernels_report

    try:
        click.echo(kernels_report(model))
    except TGIError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
