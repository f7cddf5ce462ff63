"""The command line: `tgi COMMAND`, and `text-generation-launcher` as `tgi serve` under its old name."""

from __future__ import annotations

import importlib

import click

COMMANDS = {
    "serve": "Serve a model over HTTP.",
    "plugins": "List plugins: loaded, blocked, incompatible or failed, and why.",
    "kernels": "List kernels, or what was chosen for a model and why.",
    "models": "List model families and what runs them.",
    "doctor": "Look at this machine and say what would be used and what is missing.",
    "config": "Show the settings and where each comes from.",
    "new-plugin": "Write the package of a new hardware vendor.",
    "version": "Print the version.",
}


class Commands(click.Group):
    """Imports a command when it is called, so that `tgi --help` is quick; plugins may add more."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Ours, then those of plugins."""
        return [*COMMANDS, *sorted(_plugin_commands().keys() - COMMANDS.keys())]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of this name."""
        if name in COMMANDS:
            command: click.Command = importlib.import_module(f"tgi_server.commands.{name.replace('-', '_')}").command
            return command
        return _plugin_commands().get(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One line per command, without importing ours."""
        extra = {name: command.get_short_help_str() for name, command in _plugin_commands().items()}
        with formatter.section("Commands"):
            formatter.write_dl(list((extra | COMMANDS).items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of this name."""
        import difflib

        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1, cutoff=0.5)
            ctx.fail(f"unknown command {name}" + (f"; did you mean {near[0]}?" if near else ""))
        return super().resolve_command(ctx, args)


def _plugin_commands() -> dict[str, click.Command]:
    from tgi_core.errors import PluginFailed
    from tgi_core.plugins.manager import load_plugins
    from tgi_server import hookspecs

    plugins = load_plugins(more_hookspecs=[hookspecs])
    try:
        found = [command for _, command in plugins.registered("tgi_register_commands", click.Command)]
    except PluginFailed as error:
        click.echo(f"warning: {error}", err=True)
        return {}
    return {command.name: command for command in found if command.name}


@click.version_option(None, "-V", "--version", package_name="tgi-server", message="tgi %(version)s")
@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def tgi() -> None:
    """Text generation inference: serve language models on any supported hardware."""


def main() -> None:
    """Run `tgi`."""
    tgi(prog_name="tgi")


def launcher_main() -> None:
    """Run `tgi serve` as `text-generation-launcher`."""
    from tgi_server.commands.serve import command

    command(prog_name="text-generation-launcher")


if __name__ == "__main__":
    main()
