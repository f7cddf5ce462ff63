"""Every kernel compiles for chips that are not here, with the tiles that fit into them."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

TARGETS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "gfx90a", "gfx942"]


def run(folder, *arguments):
    """Python beside `compile_ahead.py`, where kernels are compiled rather than interpreted."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(folder)}
    environment.pop("TRITON_INTERPRET", None)
    command, here = [sys.executable, *arguments], os.path.dirname(__file__)
    return subprocess.run(command, env=environment, cwd=here, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)  # minutes on a busy machine
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile_ahead(target, tmp_path):
    done = run(tmp_path, "compile_ahead.py", target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target} prefill" in done.stdout
    assert ("vgpr_spill_count" in done.stdout) is target.startswith("gfx")


def test_what_is_compiled_for_one_near_a_target_is_not_compiled_again(tmp_path):
    code = """
import compile_ahead as c
for target, near in c.NEAR.items():
    here, there = c.wanted_of(target), {*c.variants(near)}
    alike = {one for one in c.variants(target) if not one.has_float8} & there
    assert len(alike & {*here}) < len(alike) > 50, target
    assert {one.kernel for one in here} == {one.kernel for one in c.variants(target)}, target
    limits = c.limits_of(near, list(there))
    assert all(limits[one] == min(c.SHARED[target], c.SHARED[near]) for one in there & {*c.variants(target)}), target
"""
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_kernel_that_keeps_registers_in_memory_is_over_its_budget(tmp_path):
    code = "import compile_ahead as c, variants as v; v.chip.ROW_LANES = 1024; "
    code += "c.compile_all('gfx90a', [*v.sampling('gfx90a', 151643)])"
    done = run(tmp_path, "-c", code)
    assert done.returncode != 0
    assert "_filter: .vgpr_spill_count is" in done.stderr
