"""`tgi version`."""

from __future__ import annotations

import click

from tgi_server import CONTRACT_VERSION, __version__

TEXT = f"tgi {__version__} (API of text-generation-inference {CONTRACT_VERSION.partition('+')[0]})"


@click.command("version")
def command() -> None:
    """Print the version, and that of text-generation-inference whose API it keeps."""
    click.echo(TEXT)
