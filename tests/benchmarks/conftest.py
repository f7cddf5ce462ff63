import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """Benchmarks import each other as scripts do; their names are taken back afterwards."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    known = set(sys.modules)
    yield
    for file in BENCHMARKS.glob("*.py"):
        if file.stem not in known:
            sys.modules.pop(file.stem, None)
