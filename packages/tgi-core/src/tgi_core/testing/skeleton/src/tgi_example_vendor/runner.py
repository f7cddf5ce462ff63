"""Steps in declared shapes only: each is compiled before the first request that needs it is answered."""

from __future__ import annotations

from tgi_core.runner.graph import GraphRunner


class ExampleVendorRunner(GraphRunner):
    """Compiles a shape when it is met for the first time."""

    decodes_met = mixtures_met = 1
