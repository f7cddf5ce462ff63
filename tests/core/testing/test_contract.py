"""The CPU passes the contract that vendors are certified by."""

import json
import os
import subprocess
import sys

import pytest

from tgi_core.errors import ConfigError
from tgi_core.testing.new_plugin import write_plugin

COMMAND = (sys.executable, "-m", "pytest", "-c", os.devnull, "-q", "-p", "no:cacheprovider", "-p",
           "tgi_core.testing.plugin", "--pyargs", "tgi_core.testing.contract")  # fmt: skip


def contract(*arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True, check=False)


def findings(folder):
    certificate = json.loads((folder / "certificate.json").read_text())
    return certificate, [(finding["part"], finding["name"]) for finding in certificate["findings"]]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_cpu_is_certified(tmp_path):
    done = contract("--device", "cpu", "--report", str(tmp_path))
    assert done.returncode == 0, done.stdout
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate["certified"] is True
    passed = [finding["name"] for finding in certificate["findings"] if finding["outcome"] == "passed"]
    assert any("attention-native" in name for name in passed)
    assert any("linear_int4-native" in name for name in passed)


def test_several_processes_write_one_report(tmp_path):
    chosen = ("--device", "cpu", "-k", "test_scheduler or test_plugin")
    for folder, processes in (("one", "0"), ("two", "2")):
        done = contract(*chosen, "-n", processes, "--report", str(tmp_path / folder))
        assert done.returncode == 0, done.stdout
    (one, alone), (two, together) = findings(tmp_path / "one"), findings(tmp_path / "two")
    assert len(set(alone)) == len(alone) > 10
    assert alone == together
    assert one["certified"] is two["certified"] is True


def test_a_device_that_is_not_there_is_named():
    done = contract("--device", "abacus")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "device 'abacus' cannot be used" in done.stderr
    assert "cpu:" in done.stderr


@pytest.mark.parametrize("name", ["Bad", "1st", "a_b", "a--b", ""])
def test_names_that_cannot_be_one_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="cannot name a device"):
        write_plugin(name, tmp_path / "new")


def test_nothing_is_overwritten(tmp_path):
    with pytest.raises(ConfigError, match="is there already"):
        write_plugin("my-chip", tmp_path)
