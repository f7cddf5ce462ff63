"""Compiled models that are kept, by model, shapes and compiler: a folder each.

A folder has optimum-neuron's `model.pt` and `neuron_config.json`.  Weights are not in it: graphs are compiled for a
config.json, whatever its weights are.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GRAPHS = "model.pt"
SHAPES = "neuron_config.json"
#: of config.json, what says nothing of the graphs
NOT_OF_GRAPHS = frozenset({"_name_or_path", "transformers_version", "architectures"})


@dataclass(frozen=True)
class CompiledModels:
    """Those of one model, made by one compiler.

    Args:
        folder: of all models.
        config: its config.json.
        versions: of whatever made the graphs.
    """

    folder: Path
    config: Mapping[str, Any]
    versions: Mapping[str, str]

    @property
    def of_model(self) -> Path:
        """The folder of this model's."""
        kept = {name: value for name, value in self.config.items() if name not in NOT_OF_GRAPHS}
        return self.folder / _digest({"config": kept, "versions": dict(self.versions)})

    def entries(self) -> list[tuple[Path, dict[str, Any]]]:
        """Each compiled model, and its neuron_config.json."""
        return [(file.parent, json.loads(file.read_text())) for file in sorted(self.of_model.glob(f"*/{SHAPES}"))]

    def add(self, neuron_config: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        """Keep a model that `write` puts into a folder; nobody sees it before it is whole."""
        self.of_model.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".", dir=self.of_model))
        try:
            write(made)
            (made / SHAPES).write_text(json.dumps(neuron_config, indent=2, sort_keys=True))
            kept = self.of_model / _digest(neuron_config)
            try:
                made.rename(kept)
            except OSError:
                if not kept.exists():  # nobody else was faster
                    raise
            return kept
        finally:
            shutil.rmtree(made, ignore_errors=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
