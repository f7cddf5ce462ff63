"""The contract's checkpoints, and what transformers says to its prompts.

They are made in a process of their own, in which no vendor has adapted transformers:

    python -m tgi_core.testing.expected FOLDER > tokens.json
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tgi_core.errors import TGIError
from tgi_core.testing.tiny import VOCABULARY, make_checkpoint

FAMILIES = ("llama", "mistral", "gpt_neox", "bloom", "opt", "falcon", "phi", "mpt", "gpt_bigcode", "mixtral", "qwen2")
PROMPTS = [[(7 * i + j * j) % (VOCABULARY - 5) + 5 for j in range(length)] for i, length in enumerate((3, 21, 40, 1))]
TOKENS = 12  #: after each prompt


@dataclass(frozen=True)
class Checkpoints:
    """A tiny checkpoint of each of FAMILIES."""

    folder: Path  #: has a folder for each
    tokens: dict[str, list[list[int]]]  #: family -> TOKENS greedy tokens after each of PROMPTS


class NothingExpected(TGIError):
    """transformers failed; says how."""


def make_checkpoints(folder: Path) -> Checkpoints:
    """Write them, and ask transformers.

    Raises:
        NothingExpected: it failed.
    """
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}  # vendors' own, on `import torch`
    command = [sys.executable, "-m", __name__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NothingExpected(f"transformers does not say what is expected:\n{done.stderr}")
    return Checkpoints(folder, json.loads(done.stdout.splitlines()[-1]))


@torch.inference_mode()
def _greedy(folder: Path, prompt: list[int]) -> list[int]:
    """The whole text again for each token, without a cache."""
    from transformers import AutoModelForCausalLM

    model, ids = AutoModelForCausalLM.from_pretrained(folder).float().eval(), torch.tensor([prompt])
    for _ in range(TOKENS):
        following: Tensor = model(ids).logits[:, -1:].argmax(-1)
        ids = torch.cat([ids, following], 1)
    return [int(token) for token in ids[0, len(prompt) :]]


def _main(folder: Path) -> None:
    made = {family: make_checkpoint(folder / family, family) for family in FAMILIES}
    tokens = {family: [_greedy(at, prompt) for prompt in PROMPTS] for family, at in made.items()}
    sys.stdout.write(json.dumps(tokens) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
