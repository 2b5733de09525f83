"""Reading the documentation: its code blocks, its links and its command lines."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_COMMAND = re.compile(
    r"(?:.* && )?(?:uv run )?(?:python -m )?"
    r"(?:robustcords|(?:accelerate launch|torchrun) .*?(?:cli\.py|-m robustcords)) "
)
_PLACEHOLDERS = {"RECIPE", "NAME", "KEY", "VALUE", "KIND"}


@dataclass(frozen=True)
class Block:
    """A fenced block: where it begins, its language, its text, and the file that its first line (a comment) names."""

    page: str
    line: int
    language: str
    text: str

    @property
    def file(self) -> str | None:
        found = _FILE.match(self.text)
        return found[1] if found else None


def blocks(page: Path, language: str | None = None) -> list[Block]:
    text = page.read_text()
    found = [
        Block(page.name, text[: match.start()].count("\n") + 1, match[1], match[2]) for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if language in {None, block.language}]


def write_files(page: Path, folder: Path) -> None:
    """Writes every block of a page that says which file it is, and ``my.toml`` in place of a reader's own recipe.

    The checkout's recipes can be reached from there as from the checkout.
    """
    (folder / "my.toml").write_text('extends = "digits_mart"')
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
    (folder / "recipes").symlink_to(ROOT / "recipes")


def commands(page: Path) -> list[list[str]]:
    """Returns the arguments of every ``robustcords`` command line of a page, in blocks and in the text."""
    text = page.read_text()
    lines = [line for block in blocks(page) for line in block.text.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
    found = []
    for line in lines:
        if start := _COMMAND.match(line):
            arguments = shlex.split(line[start.end() :], comments=True)
            if not _PLACEHOLDERS & {part for word in arguments for part in re.split("[=/]", word)}:
                found.append(arguments)
    return found


def links(page: Path) -> list[str]:
    """Returns the targets of a page's links that point into the checkout."""
    text = _BLOCK.sub("", page.read_text())
    return [target for target in _LINK.findall(text) if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """Returns the anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", page.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
