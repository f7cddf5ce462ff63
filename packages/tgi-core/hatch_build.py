"""Build hook of tgi-core: a place for the compiled CPU kernels."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds nothing yet: the wheel is pure Python."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before each build, `version` being "standard" or "editable"."""
