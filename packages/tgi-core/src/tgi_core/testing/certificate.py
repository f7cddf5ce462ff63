"""What a vendor can publish of a run of the contract: which parts hold, which were refused, and with what."""

from __future__ import annotations

import json
import platform
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from tgi_core.plugins.libraries import installed_version
from tgi_core.testing.vendor import Vendor

OUTCOMES = ("passed", "failed", "skipped")


@dataclass(frozen=True, order=True)
class Finding:
    """One test."""

    part: str  #: "kernels", "attention", ...
    name: str
    outcome: str  #: one of OUTCOMES
    reason: str = ""  #: of what was skipped or failed


class Certificate:
    """Collects outcomes; a device is certified where nothing failed and something of every part passed."""

    def __init__(self, vendor: Vendor) -> None:
        self.vendor = vendor
        self.findings: list[Finding] = []

    def add(self, report: pytest.TestReport) -> None:
        """Take over the report of a test, or of a fixture that failed or skipped it."""
        if report.when != "call" and report.passed:
            return
        path, _, name = report.nodeid.partition("::")
        part = Path(path).stem.removeprefix("test_")
        self.findings.append(Finding(part, name, report.outcome, _reason(report)))

    @property
    def is_certified(self) -> bool:
        """See the class."""
        passed = {finding.part for finding in self.findings if finding.outcome == "passed"}
        parts = {finding.part for finding in self.findings}
        return bool(parts) and parts == passed and not any(finding.outcome == "failed" for finding in self.findings)

    def facts(self) -> dict[str, object]:
        """What was certified, and where."""
        probe, capabilities = self.vendor.probe, self.vendor.capabilities
        return {
            "certified": self.is_certified,
            "device": probe.kind,
            "products": list(probe.products),
            "date": datetime.now(UTC).date().isoformat(),
            "plugins": [f"{status.name}: {status.distribution}" for status in self.vendor.plugins.statuses],
            "tgi-core": installed_version("tgi-core") or "not installed",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "capabilities": {name: _plain(value) for name, value in vars(capabilities).items()},
        }

    def write(self, folder: Path) -> None:
        """certificate.json and certificate.md."""
        folder.mkdir(parents=True, exist_ok=True)
        self.findings.sort()  # several processes end in any order
        facts = self.facts()
        document = {**facts, "findings": [asdict(finding) for finding in self.findings]}
        (folder / "certificate.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
        (folder / "certificate.md").write_text(self._markdown(facts), encoding="utf-8")

    def _markdown(self, facts: dict[str, object]) -> str:
        kind = self.vendor.probe.kind
        lines = [f"# {kind}: {'certified' if self.is_certified else 'not certified'}", ""]
        lines += [f"- {name}: {_sentence(value)}" for name, value in facts.items() if name != "capabilities"]
        lines += ["", "| part | passed | failed | skipped |", "|---|---|---|---|"]
        parts = dict.fromkeys(finding.part for finding in self.findings)
        for part in parts:
            counts = Counter(finding.outcome for finding in self.findings if finding.part == part)
            lines.append(f"| {part} | " + " | ".join(str(counts[outcome]) for outcome in OUTCOMES) + " |")
        for outcome in ("failed", "skipped"):
            if found := [finding for finding in self.findings if finding.outcome == outcome]:
                lines += ["", f"## {outcome.capitalize()}", ""]
                lines += [f"- {finding.part}: {finding.name}: {finding.reason}" for finding in found]
        lines += ["", "## Declared", ""]
        declared = facts["capabilities"]
        assert isinstance(declared, dict)
        lines += [f"- {name}: {_sentence(value)}" for name, value in declared.items()]
        return "\n".join(lines) + "\n"


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, dict) else value


def _sentence(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _reason(report: pytest.TestReport) -> str:
    if report.skipped and isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    return report.longreprtext.strip().splitlines()[-1] if report.failed and report.longreprtext else ""
