"""Downloads a model from the hub, resumably, into huggingface_hub's own cache."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi, constants, errors

from tgi_core.errors import ModelNotFound, WeightsError
from tgi_core.weights.files import INDEXES, choose_names

log = logging.getLogger(__name__)

Progress = Callable[[float, str], None]
SMALL_SUFFIXES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
TEMPLATES = "additional_chat_templates"


def download_model(
    repository: str,
    revision: str | None,
    cache_dir: str | Path | None,
    with_weights: bool,
    progress: Progress | None,
    artifact: str = "",
) -> tuple[Path, str | None]:
    """The folder of a repository's snapshot and its commit.

    Args:
        artifact: see `DeviceBackend.artifact`; a repository that has it is downloaded whole.

    Raises:
        ModelNotFound: says why the hub did not give it and what to do.
    """
    hub = _Hub(repository, revision, cache_dir)
    listing = hub.listing()
    if listing is None:
        folder = hub.cached_folder()
        return folder, folder.name
    sizes, commit = listing
    folder = hub.fetch([name for name in sizes if _is_small(name)])
    top = [name for name in sizes if "/" not in name]
    if with_weights and artifact in sizes:
        hub.fetch_with_progress(commit, [(name, sizes[name]) for name in sizes if not _is_small(name)], progress)
    elif with_weights or "config.json" not in sizes:  # a .gguf file holds configuration and tokenizer too
        names = choose_names(top, folder) or tuple(name for name in top if name.endswith(".gguf"))
        if not names:
            raise WeightsError(f"{repository} on the hub has no weights in a format that can be read")
        if names[0].endswith(".gguf") and len(names) > 1:
            raise ModelNotFound(f"{repository} holds several models, name one: {repository}/{names[0]}, ...")
        hub.fetch_with_progress(commit, [(name, sizes.get(name) or 0) for name in names], progress)
    return folder, commit


def download_file(
    repository: str, name: str, revision: str | None, cache_dir: str | Path | None, progress: Progress | None
) -> tuple[Path, str | None]:
    """One file of a repository and the commit.

    Raises:
        ModelNotFound: says why the hub did not give it and what to do.
    """
    hub = _Hub(repository, revision, cache_dir)
    listing = hub.listing()
    if listing is None:
        folder = hub.cached_folder()
        if not (folder / name).exists():
            raise ModelNotFound(f"{repository}/{name} is not in the cache and the hub cannot be reached")
        return folder / name, folder.name
    sizes, commit = listing
    if name not in sizes:
        raise ModelNotFound(f"{repository} has no file {name}; it has {', '.join(s for s in sizes if '.gguf' in s)}")
    hub.fetch_with_progress(commit, [(name, sizes[name])], progress)
    return hub.fetch([name]) / name, commit


class _Hub:
    """One revision of one repository."""

    def __init__(self, repository: str, revision: str | None, cache_dir: str | Path | None) -> None:
        self.repository = repository
        self.revision = revision
        self.cache_dir = cache_dir

    def listing(self) -> tuple[dict[str, int], str] | None:
        """File name -> bytes, and the commit; None if the hub is out of reach, so the cache must do."""
        if constants.HF_HUB_OFFLINE:
            return None
        try:
            info = HfApi().model_info(self.repository, revision=self.revision, files_metadata=True)
        except errors.OfflineModeIsEnabled:
            return None
        except (errors.HfHubHTTPError, errors.HFValidationError) as error:
            if _status(error) in (None, 401, 403, 404) or isinstance(error, errors.HFValidationError):
                raise ModelNotFound(self._refusal(error)) from error
            log.warning("the hub answers %s; looking for %s in the cache", _status(error), self.repository)
            return None
        except Exception as error:  # of whichever HTTP client the library uses
            log.warning("the hub cannot be reached (%s); looking for %s in the cache", error, self.repository)
            return None
        return {file.rfilename: file.size or 0 for file in info.siblings or ()}, str(info.sha)

    def cached_folder(self) -> Path:
        """The snapshot that the cache holds, whole or not."""
        cache = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()
        storage = cache / f"models--{self.repository.replace('/', '--')}"
        reference = storage / "refs" / (self.revision or constants.DEFAULT_REVISION)
        commit = reference.read_text().strip() if reference.is_file() else self.revision
        folder = storage / "snapshots" / (commit or "none")
        if folder.is_dir():
            return folder
        offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub cannot be reached"
        raise ModelNotFound(
            f"{self.repository} is not in the cache and {offline}; "
            "download it once with a connection, or name a local folder"
        )

    def fetch(self, names: Sequence[str]) -> Path:
        """Download small files and return the snapshot's folder; the cache learns which commit the revision is."""
        return Path(
            self._guarded(
                huggingface_hub.snapshot_download, self.repository, revision=self.revision, allow_patterns=list(names)
            )
        )

    def fetch_with_progress(self, commit: str, files: Sequence[tuple[str, int]], progress: Progress | None) -> None:
        """Download large files one after the other; interrupted ones go on where they stopped."""
        total = sum(size for _, size in files) or 1
        done = 0
        for name, size in files:
            if progress:
                progress(done / total, name)
            self._guarded(huggingface_hub.hf_hub_download, self.repository, name, revision=commit)
            done += size
        if progress:
            progress(1.0, "")

    def _guarded(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs, cache_dir=self.cache_dir)
        except errors.HfHubHTTPError as error:
            raise ModelNotFound(self._refusal(error)) from error
        except Exception as error:  # of whichever HTTP client the library uses
            raise ModelNotFound(
                f"{self.repository}: the download stopped ({error}); start again, it goes on where it was"
            ) from error

    def _refusal(self, error: Exception) -> str:
        repository, status = self.repository, _status(error)
        if isinstance(error, errors.RevisionNotFoundError):
            return f"{repository} has no revision {self.revision!r} on the hub; check --revision"
        if isinstance(error, errors.GatedRepoError) or status == 403:
            return f"{repository} is gated: accept its terms on the hub, then set HF_TOKEN to a token of your account"
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
            return (
                f"{repository} is neither a local folder nor a public model of the hub; "
                "check the name, or set HF_TOKEN if it is private"
            )
        return f"{repository}: the hub answers: {error}"


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else int(response.status_code)


def _is_small(name: str) -> bool:
    path = PurePosixPath(name)
    here = len(path.parts) == 1 or path.parts[0] == TEMPLATES
    return here and (path.suffix in SMALL_SUFFIXES or path.name in INDEXES)
