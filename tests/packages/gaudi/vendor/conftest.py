"""optimum-habana for real, behind a stand-in for Habana's software: `nox -s gaudi` makes the environment for it."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _is_here(distribution):
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


if not (_is_here("habana-torch-plugin") and _is_here("optimum-habana")):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """(folder with a tiny checkpoint of each family, name -> greedy tokens of each prompt)"""
    folder = tmp_path_factory.mktemp("checkpoints")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(HERE / "reference.py"), str(folder)], check=True, env=environment)
    return folder, json.loads((folder / "expected.json").read_text())
