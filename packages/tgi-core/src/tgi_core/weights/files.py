"""Which files of a folder are the weights, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tgi_core.errors import WeightsError
from tgi_core.weights.safetensors_header import read_safetensors_header

SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"
INDEXES = (SAFETENSORS_INDEX, BIN_INDEX)
PATTERNS = (  # best first; an index, if there is one, says the rest
    ("model.safetensors",),
    ("model-*.safetensors", "model*.safetensors"),
    ("pytorch_model.bin",),
    ("pytorch_model-*.bin",),
)
LFS_PREFIX = b"version https://git-lfs"
LFS_MAX_BYTES = 1024


def choose_names(names: Iterable[str], folder: Path) -> tuple[str, ...]:
    """The names of the weight files among the names of a repository.

    Args:
        names: of files at the top of the repository, downloaded or not.
        folder: holds the repository's index, if it has one.

    Raises:
        WeightsError: an index is malformed.
    """
    names = sorted(names)
    for kind, index in ((".safetensors", SAFETENSORS_INDEX), (".bin", BIN_INDEX)):
        if index in names:
            return tuple(sorted(set(read_index(folder / index).values())))
        for pattern in (p for group in PATTERNS for p in group if p.endswith(kind)):
            found = tuple(name for name in names if Path(name).match(pattern))
            if found:
                return found
    return ()


def choose_weights(folder: Path) -> tuple[Path, ...]:
    """The weight files of a folder, safetensors before .bin.

    Raises:
        WeightsError: there are none, or the index is malformed.
    """
    names = choose_names((file.name for file in folder.iterdir()), folder)
    if names:
        return tuple(folder / name for name in names)
    held = sorted(file.name for file in folder.iterdir() if file.suffix in (".pt", ".pth", ".h5", ".msgpack", ".onnx"))
    other = f" ({', '.join(held)} cannot be read)" if held else ""
    raise WeightsError(f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin{other}")


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index says.

    Raises:
        WeightsError: names the file and what is wrong.
    """
    if is_lfs_pointer(path):
        raise WeightsError(f"{path} is a git-lfs pointer, not the file itself; run: git lfs pull")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        sound = all(isinstance(k, str) and isinstance(v, str) for k, v in index.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is not a valid index of weights; download it again") from error
    outside = [name for name in index.values() if Path(name).name != name] if sound else []
    if not sound or not index or outside:
        raise WeightsError(f"{path} is not a valid index of weights; it must name files of its own folder")
    return dict(index)


def check_weights(folder: Path, weights: tuple[Path, ...]) -> None:
    """Raise WeightsError, naming the file and what to do, unless every weight file is there and whole."""
    missing = [file.name for file in weights if not file.exists()]
    if missing:
        raise WeightsError(f"{folder} lacks {', '.join(missing)}; download the model again")
    for file in weights:
        if is_lfs_pointer(file):
            raise WeightsError(f"{file} is a git-lfs pointer, not the file itself; run: git lfs pull")
        if file.stat().st_size == 0:
            raise WeightsError(f"{file} is empty; download it again")
    if weights[0].suffix == ".safetensors":
        _check_safetensors(folder, weights)


def is_lfs_pointer(path: Path) -> bool:
    """Whether git left a pointer where the file should be."""
    if path.stat().st_size > LFS_MAX_BYTES:
        return False
    with path.open("rb") as file:
        return file.read(len(LFS_PREFIX)) == LFS_PREFIX


def _check_safetensors(folder: Path, weights: tuple[Path, ...]) -> None:
    held: dict[str, Path] = {}
    for file in weights:
        for name in read_safetensors_header(file):
            if name in held:
                raise WeightsError(f"{name} is in {held[name].name} and in {file.name}; download the model again")
            held[name] = file
    if not (folder / SAFETENSORS_INDEX).exists():
        return
    for name, file_name in read_index(folder / SAFETENSORS_INDEX).items():
        if name not in held or held[name].name != file_name:
            where = f"it is in {held[name].name}" if name in held else "no file has it"
            raise WeightsError(f"{folder / SAFETENSORS_INDEX} says that {name} is in {file_name}, but {where}")
