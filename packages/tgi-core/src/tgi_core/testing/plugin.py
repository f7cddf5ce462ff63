"""A plugin of pytest's for vendors: `--device`, `--report`, and what the tests of `tgi_core.testing.contract` need.

Several processes of pytest-xdist (`-n 8`) share the device; the one that started them writes the report.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tgi_core.errors import TGIError
from tgi_core.testing.certificate import Certificate
from tgi_core.testing.expected import Checkpoints, make_checkpoints
from tgi_core.testing.vendor import Vendor, find_vendor

_VENDOR = pytest.StashKey[Vendor]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of the command line."""
    group = parser.getgroup("tgi", "certifying a hardware plugin of tgi's")
    group.addoption("--device", default="cpu", help="the device to certify, as `tgi serve --device` takes it")
    group.addoption("--report", type=Path, help="a folder for certificate.md and certificate.json")


def pytest_configure(config: pytest.Config) -> None:
    """Find the device before tests are collected."""
    config.addinivalue_line("markers", "ops(name, ...): the ops whose kernels a test is for")
    try:
        vendor = find_vendor(config.getoption("--device"))
    except TGIError as error:
        raise pytest.UsageError(str(error)) from error
    config.stash[_VENDOR] = vendor
    if not hasattr(config, "workerinput"):  # pytest-xdist's; what its workers see is seen again where it was started
        config.pluginmanager.register(_Witness(Certificate(vendor), config.getoption("--report")))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests ask for `kernel` (one of the device's own, for the ops in their mark), `attention`, `dtype`, `kv_dtype`."""
    vendor = metafunc.config.stash[_VENDOR]
    ops = [op for mark in metafunc.definition.iter_markers("ops") for op in mark.args]
    kernels = [spec for spec in vendor.kernels if spec.op in ops]
    for name, found in (("kernel", kernels), ("attention", vendor.attentions)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, found, ids=[f"{spec.op}-{spec.name}" for spec in found])
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", vendor.dtypes)
    if "kv_dtype" in metafunc.fixturenames:
        metafunc.parametrize("kv_dtype", vendor.kv_dtypes)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws from PyTorch is the same in every run, on every device."""
    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def vendor(pytestconfig: pytest.Config) -> Vendor:
    """The device that is certified."""
    return pytestconfig.stash[_VENDOR]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    """Tiny models, and transformers' tokens."""
    return make_checkpoints(tmp_path_factory.mktemp("checkpoints"))


class _Witness:
    """Notes what became of every test, and writes what was asked for."""

    def __init__(self, certificate: Certificate, folder: Path | None) -> None:
        self.certificate, self.folder = certificate, folder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.certificate.add(report)

    def pytest_sessionfinish(self) -> None:
        if self.folder is not None:
            self.certificate.write(self.folder)
