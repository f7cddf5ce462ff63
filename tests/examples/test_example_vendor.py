"""A vendor's package from outside: written, built, installed, found, certified; and not certified when it is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgi_core.testing.new_plugin import write_plugin

EXAMPLE = Path(__file__).parents[2] / "examples/tgi-example-vendor"
CONTRACT = ("pytest", "-c", os.devnull, "-q", "-p", "no:cacheprovider", "-p", "tgi_core.testing.plugin", "--pyargs",
            "tgi_core.testing.contract")  # fmt: skip
CERTIFYING_S = 900  #: on a busy machine


def run(*command, **environment):
    """Python with these arguments: (exit status, what it printed)."""
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def files_of(folder):
    return {path.relative_to(folder): path.read_text() for path in sorted(folder.rglob("*")) if path.suffix != ".pyc"
            and path.is_file()}  # fmt: skip


@pytest.fixture(scope="module")
def python(make_environment, tmp_path_factory):
    """Of a new environment that sees what is installed here, with the example's wheel in it."""
    environment = make_environment(tmp_path_factory.mktemp("venv"))
    wheels = tmp_path_factory.mktemp("wheels")
    for command in (("wheel", "--no-build-isolation", "--wheel-dir", str(wheels)), ("install",)):
        found = [str(wheel) for wheel in wheels.glob("*.whl")] or [str(EXAMPLE)]
        status, said = environment.run("pip", *command, "--no-deps", *found)
        assert status == 0, said
    return environment.python


def test_the_example_is_what_new_plugin_writes(tmp_path):
    """`rm -r examples/tgi-example-vendor; tgi new-plugin example-vendor --folder examples/tgi-example-vendor`"""
    write_plugin("example-vendor", tmp_path / "written")
    assert files_of(EXAMPLE) == files_of(tmp_path / "written")


def test_it_is_found_and_explained(python):
    status, said = run(python, "-m", "tgi_server.cli", "plugins")
    assert status == 0, said
    assert "tgi-example-vendor 0.1.0" in said
    assert "Example One (pretended)" in said
    _, said = run(python, "-m", "tgi_server.cli", "plugins", EXAMPLE_VENDOR_DEVICES="0")
    assert "EXAMPLE_VENDOR_DEVICES is 0" in said


@pytest.mark.slow
@pytest.mark.timeout(CERTIFYING_S)
def test_it_is_certified(python, tmp_path):
    status, said = run(python, "-m", *CONTRACT, "--device", "example-vendor", "--report", str(tmp_path))
    assert status == 0, said
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate["certified"] is True
    assert certificate["device"] == "example-vendor"
    assert {finding["part"] for finding in certificate["findings"]} == {
        "attention", "engine", "faults", "invariance", "kernels", "plugin", "scheduler"
    }  # fmt: skip
    assert "# example-vendor: certified" in (tmp_path / "certificate.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(CERTIFYING_S)
def test_its_own_tests_pass(python):
    status, said = run(python, "-m", "pytest", "-c", os.devnull, "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))
    assert status == 0, said


def installed(folder, name):
    """A written package where Python finds it: (what to put on its path)."""
    write_plugin(name, folder / "package")
    module = f"tgi_{name.replace('-', '_')}"
    info = folder / "package/src" / f"{module}-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tgi-{name}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[tgi.v1]\n{name} = {module}.plugin\n")
    return folder / "package/src"


def certify(source, name, folder, *only):
    """(exit status, certificate, what was said)"""
    path = os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")])
    command = (sys.executable, "-m", *CONTRACT, "--device", name, "--report", str(folder), *only)
    status, said = run(*command, PYTHONPATH=path)
    return status, json.loads((folder / "certificate.json").read_text()), said


@pytest.mark.slow
@pytest.mark.timeout(CERTIFYING_S)
def test_a_new_plugin_of_any_name_holds(tmp_path):
    source = installed(tmp_path, "my-2nd-chip")
    only = ("-k", "test_plugin or test_faults or (test_kernels and rms_norm) or random_steps")
    status, certificate, said = certify(source, "my-2nd-chip", tmp_path, *only)
    assert status == 0, said
    assert certificate["certified"] is True


@pytest.mark.slow
@pytest.mark.timeout(CERTIFYING_S)
@pytest.mark.parametrize(
    ("file", "right", "wrong", "part"),
    [
        ("kernels.py", "functional.silu(gate) * up", "functional.silu(up) * gate", "kernels"),
        ("attention.py", "hidden = distance > 0", "hidden = distance > 1", "attention"),
        ("attention.py", "self.metadata.slots.fill_(self.nobody * self.block_size)", "pass", "attention"),
        ("backend.py", "batch_buckets=(1, 2, 4, 8)", "batch_buckets=()", "plugin"),
        ("plugin.py", "import pluggy", "import pluggy, torch", "plugin"),
    ],
)
def test_what_is_wrong_is_not_certified(tmp_path, file, right, wrong, part):
    source = installed(tmp_path, "wrong")
    path = source / "tgi_wrong" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    status, certificate, said = certify(source, "wrong", tmp_path, "-k", f"test_{part}")
    assert status != 0, said
    assert certificate["certified"] is False
    assert part in {finding["part"] for finding in certificate["findings"] if finding["outcome"] == "failed"}
