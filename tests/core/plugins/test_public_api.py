"""tgi.v1 is what api_v1.txt says, which only grows."""

import ast
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from public_api import FROZEN, MODULES, changes, described, entries, members

from tgi_core.plugins import ENTRY_POINT_GROUP

PAGE = Path(__file__).parents[3] / "docs/plugin-api.md"
BROKEN = f"""\
{ENTRY_POINT_GROUP} is frozen, and this breaks plugins of other people:
{{}}

Keep what was there, mark it with `tgi_core.deprecation.deprecated`, and add the new beside it; or, where that cannot
be, begin the next group of entry points.  The rules: docs/plugin-api.md.
"""
ADDED = f"""\
This is new in {ENTRY_POINT_GROUP}, where it stays for good:
{{}}

It breaks nobody.  If it is meant to be there: python tests/core/plugins/public_api.py
writes it down; commit that with the change, and a feature fragment in news/.
"""


def test_the_plugin_api_is_what_was_promised():
    added, broken = changes(FROZEN.read_text(encoding="utf-8"), described())
    if broken:
        pytest.fail(BROKEN.format("\n".join(f"- {path} {why}" for path, why in broken.items())), pytrace=False)
    if added:
        pytest.fail(ADDED.format("\n".join(f"- {path}" for path in added)), pytrace=False)


def test_the_frozen_text_is_of_the_group_that_is_spoken():
    assert FROZEN.stem == f"api_{ENTRY_POINT_GROUP.removeprefix('tgi.')}"


@pytest.mark.parametrize("module", MODULES)
def test_the_page_of_rules_names_what_is_promised(module):
    assert f"`{module}`" in PAGE.read_text(encoding="utf-8")


def api(source):
    return "\n".join(["# tgi_core.example", *members(ast.parse(source).body)])


RECORD = "@dataclass(frozen=True, kw_only=True)\nclass Record:\n    a: int\n    b: int = 1\n"
TUPLE = "class Pair(NamedTuple):\n    a: int\n    b: int = 1\n"
DEVICE = (
    "class Device(ABC):\n    kind: str = ''\n    @abstractmethod\n    def run(self, x): ...\n    def stop(self): ...\n"
)
KERNEL = "class Kernel(Protocol):\n    def pack(self, weight): ...\n"
HOOK = "@hookspec\ndef tgi_hook(a: int) -> int: ...\n"
FUNCTION = "def function(a: int, b: int = 1) -> int: ...\n"
OLD = RECORD + TUPLE + DEVICE + KERNEL + HOOK + FUNCTION


@pytest.mark.parametrize(
    ("before", "after", "path"),
    [
        (RECORD, RECORD + "    c: int = 2\n", "Record.c"),
        (RECORD, RECORD.replace("    a: int", "    c: int = 2\n    a: int"), "Record.c"),
        (RECORD, RECORD + "    def total(self): ...\n", "Record.total"),
        (TUPLE, TUPLE + "    c: int = 2\n", "Pair.c"),
        (DEVICE, DEVICE + "    def more(self): ...\n", "Device.more"),
        (DEVICE, DEVICE + "    more: int = 0\n", "Device.more"),
        (HOOK, HOOK.replace("a: int", "a: int, b: int"), "tgi_hook"),
        (HOOK, HOOK + "@hookspec\ndef tgi_more() -> int: ...\n", "tgi_more"),
        (FUNCTION, FUNCTION.replace("b: int = 1", "b: int = 1, c: int = 2"), "function"),
        (FUNCTION, FUNCTION + "class New(Protocol):\n    def pack(self): ...\n", "New"),
        (FUNCTION, FUNCTION + "SIZE = 1\n", "SIZE"),
    ],
)
def test_what_may_be_left_out_is_added(before, after, path):
    added, broken = changes(api(OLD), api(OLD.replace(before, after)))
    assert not broken
    assert f"tgi_core.example.{path}" in added


@pytest.mark.parametrize(
    ("before", "after", "path", "why"),
    [
        ("    b: int = 1\n", "", "Record.b", "is gone"),
        (HOOK, "", "tgi_hook", "is gone"),
        (FUNCTION, "", "function", "is gone"),
        ("    b: int = 1\n", "    b: int = 2\n", "Record.b", "was b: int = 1"),
        ("    b: int = 1\n", "    b: str = 1\n", "Record.b", "was b: int = 1"),
        (RECORD, RECORD + "    c: int\n", "Record.c", "has no default"),
        (RECORD, RECORD.replace(", kw_only=True", ""), "Record", "was @dataclass(frozen=True, kw_only=True)"),
        (TUPLE, TUPLE.replace("    b", "    c: int = 2\n    b"), "Pair.c", "moves tgi_core.example.Pair.b"),
        ("def run(self, x)", "def run(self, x, y=0)", "Device.run", "was @abstractmethod def run(self, x)"),
        ("def stop(self)", "def stop(self, now=False)", "Device.stop", "was def stop(self)"),
        (DEVICE, DEVICE + "    @abstractmethod\n    def more(self): ...\n", "Device.more", "is abstract"),
        (DEVICE, DEVICE + "    more: int\n", "Device.more", "has no value"),
        (KERNEL, KERNEL + "    def more(self): ...\n", "Kernel.more", "is in a protocol"),
        (HOOK, HOOK.replace("a: int", "b: int, a: int"), "tgi_hook", "was @hookspec def tgi_hook(a: int)"),
        (HOOK, HOOK.replace("-> int", "-> str"), "tgi_hook", "was @hookspec def tgi_hook(a: int)"),
        (FUNCTION, FUNCTION.replace("b: int = 1", "b: int = 1, *, c: int"), "function", "was def function"),
        (FUNCTION, FUNCTION.replace("b: int = 1", "b: int"), "function", "was def function"),
    ],
)
def test_what_plugins_would_notice_is_refused_with_why(before, after, path, why):
    assert before in OLD
    _, broken = changes(api(OLD), api(OLD.replace(before, after)))
    assert broken[f"tgi_core.example.{path}"].startswith(why)


def test_what_is_marked_as_going_away_is_still_there():
    marked = OLD.replace("@hookspec\n", "@hookspec\n@deprecated(since='1.2', use='tgi_more')\n")
    assert changes(api(OLD), api(marked)) == ([], {})


def test_an_op_needs_no_default_as_the_core_has_its_reference():
    kernels = "# tgi_core.kernels.ops\n@dataclass(frozen=True)\nclass Kernels()\n    a: Op\n"
    assert changes(kernels, kernels + "    b: Op\n") == (["tgi_core.kernels.ops.Kernels.b"], {})


@pytest.mark.parametrize(
    "body", ["def f(self): return 1", '"""Other words."""\n    def f(self): pass', "_x = 1\n    def f(self): pass"]
)
def test_what_is_inside_is_free(body):
    assert list(members(ast.parse(f"class Public:\n    {body}").body)) == ["class Public()", "    def f(self)"]


def test_the_text_has_a_line_for_every_entry():
    """Nothing is lost between the text and what is compared."""
    text = FROZEN.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not re.match(r"#|\s*@", line)]
    assert len(entries(text)) == len(lines) > 300
