"""What clients send cannot shape the log."""

import subprocess
import sys

import pytest

WRITE = """
import sys, structlog
from tgi_server import logs
logs.configure(json_output=sys.argv[1] == "json", level="info")
log = structlog.get_logger("test")
log.info("Refused", path="/x\\nforged", other="\\x1b[31mred", long="y" * 100_000)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("Defect")
logs.flush()
"""


@pytest.mark.parametrize("form", ["json", "lines"])
def test_texts_stay_within_their_line(form):
    """S40: no forged line, no escape code, no line without end."""
    command = [sys.executable, "-c", WRITE, form]
    written = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    first, rest = written.split("\n", 1)
    assert "forged" in first
    assert "\x1b" not in written
    assert len(first) < 10_000
    assert "ZeroDivisionError" in rest
