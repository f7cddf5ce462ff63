"""The plugin API's two markers: `from tgi_core.plugins import hookimpl`."""

import pluggy

PROJECT = "tgi"
API_VERSION = 1
ENTRY_POINT_GROUP = f"{PROJECT}.v{API_VERSION}"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)
