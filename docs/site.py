"""What the documentation site has besides the pages of this folder: the reference of public names, and the changes."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import robustcords

ROOT = Path(__file__).parents[1]
OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./robustcords|results/runs)[^)]*\)")
"""Links to files that a checkout has and the site has not."""

TITLES = {
    "attacks": "Attacks",
    "config": "Options",
    "data": "Data",
    "evaluation": "Evaluation",
    "experiments": "Runs",
    "losses": "Losses",
    "methods": "Methods and efforts",
    "models": "Models",
    "recipe": "Recipes",
    "rng": "Random numbers",
    "runtime": "Processes",
    "selection": "Selection",
    "storage": "Files",
    "threats": "Threat models",
    "training": "Training",
}
"""The folder that a public name comes from to the heading that it stands under."""


def reference() -> str:
    """Returns the page of every public name, under a heading for each folder of the package."""
    lines = ["# Reference", "", "Every name here is imported from the root: `from robustcords import Trainer`."]
    names = sorted(robustcords._MODULES.items(), key=lambda item: (_folder(item), item[0].lower()))
    for folder, group in itertools.groupby(names, key=_folder):
        lines += ["", f"## {TITLES[folder]}"]
        lines += [line for name, module in group for line in ("", f"::: {module}.{name}")]
    return "\n".join(lines)


def _folder(item: tuple[str, str]) -> str:
    """Returns the folder, or the module, that a public name comes from."""
    return item[1].split(".")[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    changes = (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
    files.append(File.generated(config, "reference.md", content=reference()))
    files.append(File.generated(config, "changelog.md", content=changes))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page with links to files outside this folder as the site has them."""
    del page, config, files
    markdown = markdown.replace("](../CHANGELOG.md)", "](changelog.md)")
    return OUTSIDE.sub(r"\1", markdown)
