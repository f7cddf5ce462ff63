"""The guides for vendors, followed literally: files are written, commands run, and what they print is compared.

In a guide's order: a block whose first line is `# FILE` is that file; a diff changes a file; a shell block is run, and
a text block after it shows lines of what it prints, with any number of blanks between words.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[2] / "docs/guides"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w./-]+\.\w+)\n")
FOLLOWING_S = 900  #: the contract takes minutes on a busy machine
MOST_LINES = 120


@dataclass
class Follower:
    """A person who does what a guide says, in a folder."""

    folder: Path
    environment: object
    said: str = ""

    def follow(self, kind, text):
        """One block."""
        {"shell": self.run, "text": self.compare, "diff": self.change}.get(kind, self.write)(text)

    def write(self, text):
        name = FILE.match(text)
        assert name, f"a file's block begins with its name:\n{text}"
        path = self.folder / name[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def change(self, text):
        _, name, *lines = text.splitlines()
        target = name.removeprefix("+++ ")
        path = self.folder / target
        old, new = ("\n".join(line[1:] for line in lines if line[0] != other) + "\n" for other in "+-")
        before = path.read_text()
        assert before.count(old) == 1, f"{target} does not hold this once:\n{old}"
        path.write_text(before.replace(old, new))

    def run(self, text):
        status, self.said = self.environment.run("bash", "-ec", text, folder=self.folder)
        assert status == 0, f"{text}\n{self.said}"

    def compare(self, text):
        printed = [" ".join(line.split()) for line in self.said.splitlines()]
        for line in text.splitlines():
            expected = " ".join(line.split())
            assert any(expected in found for found in printed), f"not printed: {line}\nbut:\n{self.said}"


@pytest.mark.slow
@pytest.mark.timeout(FOLLOWING_S)
@pytest.mark.parametrize("guide", ["new-hardware", "new-kernel", "new-model"])
def test_a_guide_followed_literally_gives_what_it_says(guide, make_environment, tmp_path):
    follower = Follower(tmp_path / "work", make_environment(tmp_path / "environment"))
    follower.folder.mkdir()
    blocks = BLOCK.findall((GUIDES / f"{guide}.md").read_text(encoding="utf-8"))
    assert {"shell", "text"} < {kind for kind, _ in blocks}
    for kind, text in blocks:
        follower.follow(kind, text)


@pytest.mark.parametrize("guide", sorted(GUIDES.glob("*.md")), ids=lambda path: path.stem)
def test_a_guide_is_short(guide):
    assert len(guide.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
