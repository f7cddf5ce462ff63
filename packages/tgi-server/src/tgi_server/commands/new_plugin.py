"""`tgi new-plugin`."""

from __future__ import annotations

from pathlib import Path

import click

from tgi_core.errors import ConfigError


@click.command("new-plugin")
@click.argument("name")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to; default: tgi-NAME.")
def command(name: str, folder: Path | None) -> None:
    """Write the package of a new hardware vendor, which works and is certified from the start.

    NAME is also the device's: `tgi serve --device NAME`.
    """
    from tgi_core.testing.new_plugin import write_plugin

    target = folder or Path(f"tgi-{name}")
    try:
        written = write_plugin(name, target)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{len(written)} files in {target}. Next:\n")
    click.echo(f"    pip install -e {target} 'tgi-core[testing]'")
    click.echo("    tgi plugins")
    click.echo(f"    pytest -p tgi_core.testing.plugin --pyargs tgi_core.testing.contract --device {name} --report .")
