"""Writes the embedded default model as an ordinary Hugging Face folder in bfloat16, which every peer can load."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from tgi_core.weights.reader import open_weights
from tgi_core.weights.source import default_model_id, resolve_model


def export(folder: Path) -> Path:
    """The folder, made unless it is there."""
    if (folder / "model.safetensors").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    files = resolve_model(default_model_id())
    for file in files.folder.iterdir():
        if file.is_file():
            shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps({**files.config, "torch_dtype": "bfloat16"}, indent=2))
    reader = open_weights(files)
    tensors = {name: reader.get(name, dtype=torch.bfloat16).clone() for name in sorted(reader.names)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    print(export(parser.parse_args().folder))
