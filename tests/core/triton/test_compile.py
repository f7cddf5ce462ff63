"""Every kernel compiles for chips that are not here, with the tiles that fit into them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

TARGETS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "gfx90a", "gfx942"]


@pytest.mark.slow
@pytest.mark.timeout(600)  # minutes on a busy machine
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_ahead(target, tmp_path):
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, os.path.join(os.path.dirname(__file__), "compile_ahead.py"), target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target} prefill" in done.stdout
