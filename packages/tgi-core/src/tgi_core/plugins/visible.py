"""Which GPUs a variable such as CUDA_VISIBLE_DEVICES leaves."""

from __future__ import annotations

from collections.abc import Sequence


def visible(gpus: Sequence[tuple[str, str]], wish: str | None) -> list[tuple[str, str]]:
    """Those of (name, UUID) that are left; the wish: indices or prefixes of UUIDs, up to the first invalid one."""
    if wish is None:
        return list(gpus)
    found = []
    for entry in (part.strip() for part in wish.split(",")):
        if entry.isdecimal() and int(entry) < len(gpus):
            found.append(gpus[int(entry)])
            continue
        matches = [gpu for gpu in gpus if entry and gpu[1].startswith(entry)]
        if len(matches) != 1:
            break
        found += matches
    return found
