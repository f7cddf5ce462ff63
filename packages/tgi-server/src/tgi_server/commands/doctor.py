"""`tgi doctor`."""

from __future__ import annotations

import click


@click.command("doctor")
def command() -> None:
    """Look at this machine and say what would be used and what is missing."""
    from tgi_core.engine.explain import doctor_report

    click.echo(doctor_report())
