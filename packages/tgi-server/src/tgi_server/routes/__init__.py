"""The table of all routes: what is not in it does not exist, and only what says so is open without a key."""

from __future__ import annotations

from tgi_server.routes import chat_completions, completions, documentation, generate, health, info, tokenize
from tgi_server.routes.endpoint import Endpoint

ENDPOINTS: tuple[Endpoint, ...] = (
    *generate.ENDPOINTS,
    *chat_completions.ENDPOINTS,
    *completions.ENDPOINTS,
    *tokenize.ENDPOINTS,
    *info.ENDPOINTS,
    *health.ENDPOINTS,
    *documentation.ENDPOINTS,
)
