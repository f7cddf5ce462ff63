"""`tgi kernels`."""

from __future__ import annotations

import sys

import click

from tgi_core.errors import TGIError


@click.command("kernels")
@click.option("--model-id", "--model", "model", help="Say what was chosen for this model, and why the others were not.")
@click.option("--device", envvar="TGI_DEVICE", help="For this kind of device; default: as `tgi serve` chooses.")
@click.option("--kv-cache-dtype", help="With keys and values in this format, as `tgi serve` takes it.")
@click.option("--deterministic", is_flag=True, help="Only those by which a row does not depend on others.")
def command(model: str | None, device: str | None, kv_cache_dtype: str | None, deterministic: bool) -> None:
    """List kernels, or what was chosen for a model and why."""
    from tgi_core.config import EngineConfig
    from tgi_core.engine.explain import kernels_report

    try:
        wishes = EngineConfig(
            model_id=model or "", device=device, kv_cache_dtype=kv_cache_dtype, deterministic=deterministic
        )
        click.echo(kernels_report(wishes if model else None))
    except TGIError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
