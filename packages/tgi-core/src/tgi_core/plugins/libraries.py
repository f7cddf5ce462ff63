"""What is installed, read from metadata and text: probes may not import torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TorchBuild:
    """Which accelerator the installed PyTorch was built for."""

    version: str  #: "2.13.0+cpu"; "" = PyTorch is not installed
    cuda: str = ""  #: "12.8", "" = built without
    hip: str = ""  #: "6.4.43482", "" = built without


def installed_version(distribution: str) -> str:
    """The installed version of a distribution, "" if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def torch_build() -> TorchBuild:
    """Read `torch/version.py` as text; it names the toolkits that PyTorch was built with."""
    try:
        distribution = metadata.distribution("torch")
    except metadata.PackageNotFoundError:
        return TorchBuild(version="")
    version_file = Path(str(distribution.locate_file("torch/version.py")))
    return parse_torch_version(distribution.version, version_file.read_text() if version_file.is_file() else "")


def parse_torch_version(version: str, text: str) -> TorchBuild:
    """The build that the text of a `torch/version.py` describes."""
    found = dict(re.findall(r"^(\w+)\s*(?::[^=\n]+)?=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))
    return TorchBuild(version=found.get("__version__", version), cuda=found.get("cuda", ""), hip=found.get("hip", ""))
