"""The model and its tokenizer: a plugin's, where one answers, else the core's.  Imports no torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tgi_core.errors import ModelNotFound, TGIError, TokenizerError
from tgi_core.plugins.manager import Plugins
from tgi_core.tokenizer.tokenizer import Tokenizer, load_tokenizer
from tgi_core.weights.source import ModelFiles, Progress, default_model_id, resolve_model


def find_model(
    plugins: Plugins,
    model_id: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    download_weights: bool = True,
    progress: Progress | None = None,
    artifact: str = "",
) -> ModelFiles:
    """As `tgi_core.weights.source.resolve_model`, after the plugins that fetch models from elsewhere.

    Raises:
        ModelNotFound: there is no such model, it cannot be reached, or a plugin failed over it.
        WeightsError: a file of it is missing, truncated or malformed.
    """
    model_id = model_id or default_model_id()
    try:
        path = plugins.hook.tgi_resolve_model(model_id=model_id, revision=revision, cache_dir=cache_dir)
    except TGIError:
        raise
    except Exception as error:
        raise ModelNotFound(f"{model_id}: a plugin failed to fetch it: {type(error).__name__}: {error}") from error
    if path is None:
        return resolve_model(
            model_id,
            revision=revision,
            cache_dir=cache_dir,
            download_weights=download_weights,
            progress=progress,
            artifact=artifact,
        )
    if not Path(path).exists():
        raise ModelNotFound(f"{model_id}: a plugin says that it lies at {path}, where nothing is")
    return replace(resolve_model(str(path), download_weights=download_weights, artifact=artifact), model_id=model_id)


def make_tokenizer(
    plugins: Plugins, files: ModelFiles, *, tokenizer_config_path: str | None = None, trust_remote_code: bool = False
) -> Tokenizer:
    """As `tgi_core.tokenizer.tokenizer.load_tokenizer`, after the plugins that make tokenizers of their own.

    Raises:
        TokenizerError: there is none, it is malformed, or a plugin failed over it.
    """
    try:
        made: Any = plugins.hook.tgi_create_tokenizer(model_path=files.folder, trust_remote_code=trust_remote_code)
    except TGIError:
        raise
    except Exception as error:
        raise TokenizerError(f"a plugin failed to make the tokenizer: {type(error).__name__}: {error}") from error
    if made is None:
        return load_tokenizer(files, tokenizer_config_path=tokenizer_config_path, trust_remote_code=trust_remote_code)
    if not isinstance(made, Tokenizer):
        raise TokenizerError(f"a plugin made a {type(made).__name__} where a Tokenizer was expected")
    return made
