"""Tells plugins what happens.  An observer that fails is reported once and not asked again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from tgi_core.plugins.manager import Plugins
from tgi_core.request import Request, RequestOutput
from tgi_core.stats import EngineInfo, StepStats

HOOKS = ("tgi_on_engine_started", "tgi_on_step_finished", "tgi_on_request_finished")

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Tally:
    """What the end of a request is reported with."""

    prompt_tokens: int
    generated_tokens: int = 0


class Observers:
    """The observation hooks of one engine; costs nothing where no plugin implements them."""

    def __init__(self, plugins: Plugins | None = None) -> None:
        self._impls = {hook: plugins.implementations(hook) if plugins else [] for hook in HOOKS}
        self._tallies: dict[int, _Tally] = {}

    def engine_started(self, info: EngineInfo) -> None:
        """The engine is ready."""
        self._tell("tgi_on_engine_started", info=info)

    def step_finished(self, stats: StepStats) -> None:
        """A step has ended."""
        self._tell("tgi_on_step_finished", stats=stats)

    def request_added(self, request: Request) -> None:
        """Count from here."""
        if self._impls["tgi_on_request_finished"]:
            self._tallies[request.id] = _Tally(len(request.prompt_ids))

    def outputs(self, outputs: list[RequestOutput]) -> None:
        """Count tokens, and report the requests that end."""
        if not self._tallies:
            return
        for output in outputs:
            if tally := self._tallies.get(output.request_id):
                tally.generated_tokens += len(output.token_ids)
                if output.finish_reason:
                    self._request_finished(output.request_id, output.finish_reason)

    def aborted(self, request_id: int) -> None:
        """The caller wants no more of a request."""
        if request_id in self._tallies:
            self._request_finished(request_id, "abort")

    def _request_finished(self, request_id: int, reason: str) -> None:
        tally = self._tallies.pop(request_id)
        self._tell(
            "tgi_on_request_finished",
            request_id=request_id,
            finish_reason=reason,
            prompt_tokens=tally.prompt_tokens,
            generated_tokens=tally.generated_tokens,
        )

    def _tell(self, hook: str, **facts: Any) -> None:
        for impl in tuple(self._impls[hook]):
            try:
                impl.function(**{name: facts[name] for name in impl.argnames})
            except Exception:
                log.exception("plugin %s failed in %s and is not told any more", impl.plugin_name, hook)
                self._impls[hook].remove(impl)
