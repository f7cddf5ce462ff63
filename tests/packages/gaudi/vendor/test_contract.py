"""The contract that vendors are certified by, on the stand-in."""

import json
import os
import subprocess
import sys

import pytest

PARTS = {"attention", "engine", "faults", "invariance", "kernels", "plugin", "scheduler"}
#: why a part of the contract is not asked of this device
SKIPPED = {
    "does not say that it is",  # batch-invariant
    "got empty parameter set for (kv_dtype)",
    "has no metadata for recorded steps",
    "reads sources with their decoder",
    "the device does not mix prompts and decodes",
    "the device takes whole prompts only",
    "writes gate and up to memory",
}


@pytest.mark.timeout(600)
def test_gaudi_is_certified(tmp_path):
    plain = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "-p", "no:cacheprovider"]
    contract = ["-p", "tgi_core.testing.plugin", "--pyargs", "tgi_core.testing.contract"]
    command = [*plain, *contract, "--device", "gaudi", "--report", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate["certified"] is True
    assert certificate["products"] == ["Intel Gaudi 2"]
    findings = certificate["findings"]
    assert {finding["part"] for finding in findings if finding["outcome"] == "passed"} == PARTS
    assert {finding["reason"] for finding in findings if finding["outcome"] == "skipped"} == SKIPPED
