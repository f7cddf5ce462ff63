"""Writes the package of a new vendor: whole, small, and certified by `tgi_core.testing.contract` from the start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from tgi_core.errors import ConfigError

SKELETON = "example-vendor"  #: what it is called in its own files, which in the repository are those of examples/
LEFTOVERS = re.compile(r"\..*|.*\.pyc|.*\.egg-info|__pycache__|build|dist")  #: of whoever worked on them
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


def spellings(name: str) -> tuple[str, ...]:
    """A name as packages, modules, classes and environment variables are spelt."""
    words = name.split("-")
    return name, "_".join(words), "".join(word.capitalize() for word in words), "_".join(words).upper()


def write_plugin(name: str, folder: Path) -> list[Path]:
    """Write `tgi-NAME` into a new folder, and return its files.

    Args:
        name: lower-case words with hyphens between them; also the device's name on the command line.

    Raises:
        ConfigError: the name cannot be one, or the folder is there.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a device: take lower-case letters and digits, as in my-chip")
    if folder.exists():
        raise ConfigError(f"{folder} is there already; name another folder with --folder")
    written = []
    for path, text in _files(resources.files("tgi_core.testing") / "skeleton", Path()):
        target = folder / _renamed(str(path), name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed(text, name), encoding="utf-8")
        written.append(target)
    return written


def _renamed(text: str, name: str) -> str:
    for own, new in zip(spellings(SKELETON), spellings(name), strict=True):
        text = text.replace(own, new)
    return text


def _files(source: Traversable, path: Path) -> Iterator[tuple[Path, str]]:
    for entry in sorted(source.iterdir(), key=lambda entry: entry.name):
        if LEFTOVERS.fullmatch(entry.name):
            continue
        if entry.is_dir():
            yield from _files(entry, path / entry.name)
        else:
            yield path / entry.name, entry.read_text(encoding="utf-8")
