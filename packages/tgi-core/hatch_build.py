"""Compiles the CPU kernels with the system's C++ compiler, where there is one.

Without a compiler the package still installs: `tgi kernels` then says why the plain PyTorch kernels were chosen.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FLAGS = [
    *("-O3", "-std=c++20", "-fPIC", "-shared", "-pthread", "-Wno-psabi"),
    *("-fno-math-errno", "-fno-trapping-math", "-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
]
BF16 = ["-march=x86-64-v4", "-mavx512bf16", "-mavx512vnni"]

#: file name suffix -> flags; `tgi_core.cpu.native` picks the best one that the processor runs
X86_64 = {"amx": [*BF16, "-mamx-tile", "-mamx-bf16", "-mamx-int8"], "avx512bf16": BF16, "avx2": ["-march=x86-64-v3"]}
VARIANTS: dict[str, dict[str, list[str]]] = {"x86_64": X86_64, "amd64": X86_64}


class CustomBuildHook(BuildHookInterface):
    """hatchling's hook: runs for wheels and editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "src" / "tgi_core" / "cpu" / "native"
        built = compile_kernels(folder)
        if built:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"
            build_data["artifacts"] += [f"/src/tgi_core/cpu/native/{path.name}" for path in built]
        else:
            self.app.display_warning("no working C++ compiler: the CPU will run on PyTorch's own kernels")


def platform_tag() -> str:
    """The wheel's platform: what this host's pip calls itself."""
    from packaging.tags import sys_tags

    return next(iter(sys_tags())).platform


def compile_kernels(folder: Path, flags: Sequence[str] = FLAGS) -> list[Path]:
    """Build one shared library per processor variant, side by side; those that do not compile are left out."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if not compiler:
        return []
    sources = sorted(str(path) for path in folder.glob("*.cpp"))
    variants = VARIANTS.get(platform.machine().lower(), {"generic": []})
    libraries = [folder / f"kernels_{name}.so" for name in variants]

    def compiles(library: Path, march: list[str]) -> bool:
        command = [compiler, *flags, *march, "-o", str(library), *sources]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = pool.map(compiles, libraries, variants.values())
    return [library for library, is_built in zip(libraries, built, strict=True) if is_built]
