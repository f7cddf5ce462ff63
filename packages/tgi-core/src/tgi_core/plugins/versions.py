"""Whether a plugin was made for the version of the core that runs, which pip asks only when it installs one of them."""

from __future__ import annotations

from importlib import metadata

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

CORE = "tgi-core"


def made_for_another(distribution: metadata.Distribution, running: str) -> str:
    """What to do about a distribution whose range of versions of the core is another; "" where it has the running one.

    Args:
        running: the core's version; "" = it is not installed, but run from its sources.
    """
    try:
        version = Version(running)
    except InvalidVersion:
        return ""
    ranges = [str(wanted.specifier) for wanted in _wanted(distribution) if not wanted.specifier.contains(version, True)]
    if not ranges:
        return ""
    return (
        f"made for {CORE} {', '.join(ranges)}, and this is {running}: it may fail; "
        f"install releases of it and of {CORE} that fit"
    )


def _wanted(distribution: metadata.Distribution) -> list[Requirement]:
    """Its requirements of the core, without those of extras."""
    found = []
    for line in distribution.requires or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if canonicalize_name(requirement.name) == CORE:
            found.append(requirement)
    return found
