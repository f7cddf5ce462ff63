"""Turns old .bin checkpoints into safetensors, in a process of its own: pickled data is never loaded by the server."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tgi_core.errors import WeightsError
from tgi_core.weights.cache import derived_folder
from tgi_core.weights.files import SAFETENSORS_INDEX, check_weights, choose_weights


def convert_to_safetensors(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """The same weights as safetensors: beside the .bin files, or in a cache folder where that cannot be written.

    Raises:
        WeightsError: a file is damaged or holds more than tensors.
    """
    folder = paths[0].parent
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".converting-") as draft:
            _convert_in_subprocess(paths, Path(draft))
            return tuple(file.rename(folder / file.name) for file in _index_last(Path(draft)))[: len(paths)]
    except OSError:
        target = derived_folder("converted", paths, lambda draft: _convert_in_subprocess(paths, draft))
    weights = choose_weights(target)
    check_weights(target, weights)
    return weights


def _index_last(folder: Path) -> list[Path]:
    """The index makes the others visible, so it moves last."""
    return sorted(folder.iterdir(), key=lambda file: (file.name == SAFETENSORS_INDEX, file.name))


def _convert_in_subprocess(paths: tuple[Path, ...], folder: Path) -> None:
    command = [sys.executable, "-m", "tgi_core.weights.convert", str(folder), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise WeightsError(f"{paths[0].parent}: the .bin weights cannot be converted to safetensors: {lines[-1]}")


def convert(folder: Path, paths: list[Path]) -> None:
    """Write one safetensors file per .bin file, and the index if there are several."""
    import torch
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, path in enumerate(paths, 1):
        name = "model.safetensors" if len(paths) == 1 else f"model-{number:05}-of-{len(paths):05}.safetensors"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except (RuntimeError, ValueError) as error:
            if "mmap" not in str(error):
                raise
            state = torch.load(path, map_location="cpu", weights_only=True)  # written before PyTorch 1.6
        # contiguous copies: safetensors refuses tensors that share memory
        tensors = {
            name: value.clone().contiguous()
            for name, value in state.items()
            if isinstance(value, torch.Tensor) and name not in weight_map
        }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, name)
    if len(paths) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / SAFETENSORS_INDEX).write_text(json.dumps(index))


def main(arguments: list[str]) -> int:
    """Run the conversion and say in one line why it failed."""
    paths = [Path(argument) for argument in arguments[1:]]
    try:
        convert(Path(arguments[0]), paths)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"{', '.join(path.name for path in paths)}: {reason}; download again or use safetensors", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
