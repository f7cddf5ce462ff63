"""The plugin API is what api_snapshot.txt says.  `python tests/core/plugins/test_api_snapshot.py` writes it anew."""

import ast
import difflib
from pathlib import Path

import pytest

PACKAGES = Path(__file__).parents[3] / "packages"
PAGE = Path(__file__).parents[3] / "docs/plugin-api.md"
SNAPSHOT = Path(__file__).with_name("api_snapshot.txt")
MODULES = (
    "tgi_core.plugins",
    "tgi_core.plugins.hookspecs",
    "tgi_core.plugins.specs",
    "tgi_core.device.backend",
    "tgi_core.device.capabilities",
    "tgi_core.kernels.ops",
    "tgi_core.attention.base",
    "tgi_core.runner.base",
    "tgi_core.step",
    "tgi_core.stats",
    "tgi_core.models.base",
    "tgi_core.quantization.base",
    "tgi_core.sampling.processors.base",
    "tgi_core.sampling.state",
    "tgi_core.sampling_params",
    "tgi_server.hookspecs",
)
ONLY = {"tgi_core.sampling.state": ("SlotState", "SamplingContext")}  #: of modules that hold more than the API
SPECIAL = ("__init__", "__call__")
CHANGED = """\
The plugin API has changed, and plugins of other people may use it.  The rules (docs/plugin-api.md):
- what is added and may be left out (a hook, a field with a default, a method with a body) needs a feature fragment
  in news/;
- anything else is a breaking change: it needs a breaking fragment in news/ and the next minor version, and from tgi.v1
  on a release that warns before, or the next group of entry points.
Then write the snapshot anew and commit it with the change: python tests/core/plugins/test_api_snapshot.py

"""


def described():
    """The API as text: a line for each class, function, field and method that has a public name."""
    return "\n\n".join("\n".join([f"# {module}", *members(public(module))]) for module in MODULES) + "\n"


def public(module):
    """Its statements that belong to the API."""
    body, names = syntax(module).body, ONLY.get(module)
    return body if names is None else [node for node in body if getattr(node, "name", "") in names]


def syntax(module):
    package, *names = module.split(".")
    path = PACKAGES / package.replace("_", "-") / "src" / package / Path(*names)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def members(body, margin=""):
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if not ast.unparse(target).startswith("_"):
                yield margin + ast.unparse(node)
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            if node.name.startswith("_") and node.name not in SPECIAL:
                continue
            yield from (f"{margin}@{ast.unparse(decorator)}" for decorator in node.decorator_list)
            if isinstance(node, ast.FunctionDef):
                result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
                yield f"{margin}def {node.name}({ast.unparse(node.args)}){result}"
            else:
                yield f"{margin}class {node.name}({', '.join(map(ast.unparse, [*node.bases, *node.keywords]))})"
                yield from members(node.body, margin + "    ")


def difference(expected, found):
    return "\n".join(difflib.unified_diff(expected.splitlines(), found.splitlines(), "promised", "here", "", "", 1, ""))


def test_the_plugin_api_is_what_was_promised():
    if changed := difference(SNAPSHOT.read_text(encoding="utf-8"), described()):
        pytest.fail(CHANGED + changed, pytrace=False)


@pytest.mark.parametrize("module", MODULES)
def test_the_page_of_rules_names_what_is_promised(module):
    assert f"`{module}`" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("x: int", "x: str", "+    x: str"),
        ("x: int", "x: int = 1", "+    x: int = 1"),
        ("def f(self, a): pass", "def f(self, b): pass", "+    def f(self, b)"),
        ("@abstractmethod\n    def f(self): pass", "def f(self): pass", "-    @abstractmethod"),
    ],
)
def test_a_change_is_seen(before, after, line):
    texts = ["\n".join(members(ast.parse(f"class Public:\n    {body}").body)) for body in (before, after)]
    assert line in difference(*texts).splitlines()


@pytest.mark.parametrize(
    "body", ["def f(self): return 1", '"""Other words."""\n    def f(self): pass', "_x = 1\n    def f(self): pass"]
)
def test_what_is_inside_is_free(body):
    assert list(members(ast.parse(f"class Public:\n    {body}").body)) == ["class Public()", "    def f(self)"]


if __name__ == "__main__":
    SNAPSHOT.write_text(described(), encoding="utf-8")
