"""What all tests share: their random numbers, Triton's interpreter where there is no GPU, and made faster, and
environments of people who have installed tgi's packages and nothing else."""

import collections
import importlib.util
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, whose own functions are made for it then

COMMANDS = {  # what pip would write for them; -P as the current folder is on nobody's path
    "tgi": "-P -m tgi_server.cli",
    "pytest": "-P -m pytest",
    "pip": "-P -m pip",
}
LONGEST = (  # files that take a minute and more, so that no core waits for the last of them
    "core/triton/test_compile.py",
    "core/models/test_parity.py",
    "docs/test_guides.py",
    "core/triton/test_attention.py",
    "packages/test_rocm_engine.py",
    "core/models/test_tensor_parallel.py",
    "core/models/test_embedded_model.py",
    "core/triton/test_invariance.py",
    "examples/test_example_vendor.py",
)


def pytest_collection_modifyitems(items):
    """Begins with the files that take longest, which `--no-loadscope-reorder` keeps first."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(LONGEST)}
    assert all(path.exists() for path in ranks), "a file of LONGEST is not where it was"
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


@pytest.fixture(autouse=True)
def _seeded():
    """What a test draws from PyTorch is the same in every run."""
    torch.default_generator.manual_seed(0)


@dataclass(frozen=True)
class Environment:
    """A virtual environment that sees what is installed here, and installs into itself, without a network."""

    folder: Path

    @property
    def python(self):
        return str(self.folder / "bin/python")

    @property
    def variables(self):
        ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        return {**ours, "PATH": path, "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1", "PYTHONDONTWRITEBYTECODE": "1"}

    def run(self, *command, folder=None, **variables):
        """A command with its arguments: (exit status, what it printed)."""
        done = subprocess.run(
            command,
            cwd=folder,
            env={**self.variables, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture(scope="session")
def make_environment():
    """Makes an environment in a folder."""
    pytest.importorskip("hatchling", reason="hatchling builds packages; it comes with this project's own environment")

    def make(folder):
        environment = Environment(folder)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        _, site = environment.run(environment.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
        paths = [path for path in sys.path if path.endswith("/src")] + [sysconfig.get_path("purelib")]
        lines = "\n".join(f"import site; site.addsitedir({path!r})" for path in paths)
        (Path(site.strip()) / "here.pth").write_text(lines)
        for name, arguments in COMMANDS.items():
            install = '[ "$1" = install ] && set -- "$@" --no-build-isolation\n' if name == "pip" else ""
            script = folder / "bin" / name
            script.write_text(f'#!/bin/sh\n{install}exec "{environment.python}" {arguments} "$@"\n')
            script.chmod(0o755)
        return environment

    return make


@pytest.fixture(scope="session")
def faster_interpreter():
    """Makes Triton's interpreter faster, where it is used; gives how often a function had its language replaced."""
    if torch.cuda.is_available() or not importlib.util.find_spec("triton"):
        yield collections.Counter()
        return
    from fast_interpreter import made_faster

    with made_faster() as count:
        yield count
