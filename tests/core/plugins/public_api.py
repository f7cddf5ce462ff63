"""The plugin API as text, and what becomes of a plugin when it changes.

    python tests/core/plugins/public_api.py

adds to api_v1.txt what was added to the API, and refuses to take anything away.  Rules: docs/plugin-api.md.
"""

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = Path(__file__).parents[3] / "packages"
FROZEN = Path(__file__).with_name("api_v1.txt")
UNSAID = ("gc",)  #: of a class, as no plugin notices how its memory is freed
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
OPS = "tgi_core.kernels.ops.Kernels"  #: made by the core alone
SPECIAL = ("__init__", "__call__")
NAME = re.compile(r"(?:class |def )?(\w+)")
FIELDS_BY_POSITION = re.compile(r"NamedTuple|Struct|@dataclass")
FIELDS_BY_NAME = "kw_only=True"


# ---- the API as text ------------------------------------------------------------------------------------------------


def described():
    """A line for each class, function, field and method that has a public name."""
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
                said = [*node.bases, *(word for word in node.keywords if word.arg not in UNSAID)]
                yield f"{margin}class {node.name}({', '.join(map(ast.unparse, said))})"
                yield from members(node.body, margin + "    ")


# ---- what changed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A line of the text, with what stands above it."""

    module: str
    owner: str  #: path of its class; "" of what stands in a module
    text: str
    decorators: tuple[str, ...]  #: but for `deprecated`

    @property
    def is_function(self):
        return self.text.startswith("def ")

    @property
    def has_value(self):
        return " = " in self.text

    @property
    def named_fields(self):
        """Whether a class's fields may come in any order; None of one without such fields."""
        head = "\n".join((*self.decorators, self.text))
        return FIELDS_BY_NAME in head if FIELDS_BY_POSITION.search(head) else None


def entries(text):
    """path -> Entry, in order."""
    found, module, above, decorators = {}, "", {}, []
    for line in text.splitlines():
        margin = len(line) - len(line.lstrip())
        if line.startswith("# "):
            module = line[2:]
        elif line.lstrip().startswith("@"):
            decorators += [line.strip()] if not line.lstrip().startswith("@deprecated(") else []
        elif line:
            owner = above.get(margin - 4, "")
            path = f"{owner or module}.{NAME.match(line.strip())[1]}"
            found[path] = Entry(module, owner, line.strip(), tuple(decorators))
            above[margin], decorators = path, []
    return found


def changes(before, after):
    """(what was added and breaks nobody, what was taken away or breaks somebody: each with why)"""
    old, new = entries(before), entries(after)
    added = [path for path in new if path not in old and not why_it_breaks(path, old, new)]
    broken = {path: why_it_breaks(path, old, new) for path in new if path not in old}
    broken |= {path: "is gone" for path in old if path not in new}
    broken |= {path: why_it_differs(old[path], new[path]) for path in old if path in new}
    added += [path for path in old if path in new and old[path] != new[path] and not broken[path]]
    return added, {path: why for path, why in broken.items() if why}


def why_it_differs(old, new):
    """Of what was there before; "" if plugins do not notice."""
    if old == new:
        return ""
    if old.decorators == new.decorators and old.is_function and not old.owner and has_grown(old, new):
        return ""
    return f"was {' '.join((*old.decorators, old.text))}"


def has_grown(old, new):
    """Whether a function takes more than before: of hooks anything, as plugins take what they like of it."""
    (was,), (now,) = (ast.parse(f"{entry.text}: ...").body for entry in (old, new))
    more = len(now.args.args) - len(was.args.args)
    defaults = len(now.args.defaults) - len(was.args.defaults)
    now.args.args = now.args.args[: len(was.args.args)]
    now.args.defaults = now.args.defaults[: len(was.args.defaults)]
    is_hook = any(decorator.startswith("@hookspec") for decorator in new.decorators)
    return ast.unparse(was) == ast.unparse(now) and more > 0 and (is_hook or more == defaults)


def why_it_breaks(path, old, new):
    """Of what is new; "" if it breaks nobody."""
    entry = new[path]
    if not entry.owner or entry.owner not in old or entry.owner == OPS:
        return ""
    owner = new[entry.owner]
    if "@abstractmethod" in entry.decorators:
        return "is abstract: what implements the class has it not"
    if "Protocol" in owner.text:
        return "is in a protocol: what implements it has it not"
    if entry.is_function or owner.named_fields is None:
        return "" if entry.is_function or entry.has_value else "has no value: what implements the class has it not"
    if not entry.has_value:
        return "has no default: who makes the record does not give it"
    after = list(new)[list(new).index(path) :]
    moved = [
        other for other in after if other in old and new[other].owner == entry.owner and not new[other].is_function
    ]
    return f"moves {moved[0]}, which may be given by its position" if moved and not owner.named_fields else ""


def main():
    now = described()
    added, broken = changes(FROZEN.read_text(encoding="utf-8") if FROZEN.exists() else "", now)
    if broken:
        sys.exit("tgi.v1 is frozen:\n" + "\n".join(f"- {path} {why}" for path, why in broken.items()))
    FROZEN.write_text(now, encoding="utf-8")
    sys.stdout.write("\n".join(["added:", *added, ""]))


if __name__ == "__main__":
    main()
