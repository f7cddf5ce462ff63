import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def load_generator():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_pages_are_fresh():
    assert load_generator().stale_pages() == [], "run: nox -s docs"


def test_links_between_pages_lead_somewhere():
    import re

    pages = [*DOCS.rglob("*.md"), *(DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md"))]
    broken = [
        (page.name, link)
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / link).exists()
    ]
    assert broken == []


def test_files_that_the_architecture_names_exist():
    import re

    text = (DOCS / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tgi_(?:core|server|cuda)/[\w/]+(?:\.py|/))`", text)
    missing = [
        name
        for name in named
        if not (DOCS.parent / "packages" / name.split("/")[0].replace("_", "-") / "src" / name).exists()
    ]
    assert named
    assert missing == []
