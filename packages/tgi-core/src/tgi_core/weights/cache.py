"""A folder for files that are derived from checkpoints: converted weights, tokenizers taken out of GGUF files."""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import constants

LAYOUT = 1  # raise it when what is derived changes


def derived_folder(kind: str, sources: Iterable[Path], make: Callable[[Path], None]) -> Path:
    """The folder that `make` filled from these files, made once per content (path, size and time of change).

    It lies beside the hub's cache; where that cannot be written, in a folder that lives as long as this process.
    """
    folder = Path(constants.HF_HOME) / "tgi" / kind / _key(sources)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".draft-"))
    except OSError:
        return _temporary_folder(make)
    try:
        make(draft)
        return _move_into_place(draft, folder)
    except OSError:  # the disk is full
        return _temporary_folder(make)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_into_place(draft: Path, folder: Path) -> Path:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster
            raise
    return folder


def _temporary_folder(make: Callable[[Path], None]) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="tgi-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make(folder)
    return folder


def _key(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(str(LAYOUT).encode())
    for source in sources:
        status = os.stat(source)
        digest.update(f"\0{source.resolve()}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]
