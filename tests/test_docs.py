from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
import typer
from support import docs_pages as pages
from support.cases import cases

from robustcords.cli import app
from robustcords.config import registry
from robustcords.config.schema import Table
from robustcords.data.base import Splits
from robustcords.data.digits import Digits
from robustcords.data.folder import Folder
from robustcords.data.parquet import Parquet
from robustcords.evaluation.config import FurtherAttack
from robustcords.experiments import reproduce, sweep
from robustcords.models import PREFIXES
from robustcords.recipe import recipe, scaffold, tables
from robustcords.recipe.describe import options

DOCS = pages.ROOT / "docs"
RECIPES = (DOCS / "recipes.md").read_text()
OPTIONS = SimpleNamespace(**runpy.run_path(str(DOCS / "options.py")))
TARGETS = OPTIONS.targets(RECIPES)


def test_tables_of_options_are_current():
    assert OPTIONS.written(RECIPES) == RECIPES, "run `python docs/options.py`"


def test_the_chart_is_of_the_committed_runs():
    chart = SimpleNamespace(**runpy.run_path(str(pages.ROOT / "benchmarks/readme_chart.py")))
    current = (DOCS / "minutes.svg").read_text()
    assert chart.drawn(chart.measured()) == current, "run `python benchmarks/readme_chart.py docs/minutes.svg`"


def test_every_component_and_every_table_of_a_recipe_is_described():
    components = {target for kind in registry.KINDS for target in registry.names(kind).values()}
    assert components | set(tables.TABLES.values()) <= set(TARGETS)
    described = {OPTIONS.table_of(target) for target in TARGETS}
    assert {config_of(target) for target in PREFIXES.values()} | {Folder.Config, Parquet.Config} <= described
    fields = [field for table in described for field in table.model_fields.values()]
    inside = {table for field in fields for table in tables_in(field.annotation)}
    assert inside - described == {FurtherAttack}  # whose keys are those of the attack that it names


def config_of(target: str) -> type[Table]:
    return registry.config_of(registry.imported(target))


def tables_in(annotation: object) -> Iterator[type[Table]]:
    """Yields the tables in the type of a field, but for those that have a name alone."""
    if isinstance(annotation, type) and issubclass(annotation, Table) and annotation.model_fields.keys() - {"name"}:
        yield annotation
    for part in get_args(annotation):
        yield from tables_in(part)


@cases("target", TARGETS)
def test_every_option_has_a_meaning(target):
    named = {kind.key for kind in registry.KINDS.values()}
    without = [option.key for option in options(OPTIONS.table_of(target)) if not option.meaning]
    assert set(without) <= named


@cases("page", pages.PAGES)
def test_links_resolve(page):
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in pages.anchors(file), f"{page.name}: {target}"


@pytest.fixture
def in_page(importable, monkeypatch):
    """Gives a function that goes into a fresh folder with the files of a page; the digits are few."""
    monkeypatch.setattr(Digits, "load", lambda self, whole=Digits.load: first(whole(self), 300, 60))

    def enter(page: Path) -> Path:
        pages.write_files(page, importable)
        monkeypatch.chdir(importable)
        return importable

    return enter


get_command = cache(typer.main.get_command)


def first(splits: Splits, train: int, test: int) -> Splits:
    """Returns so many images of a data set."""
    return Splits(splits.train.subset(torch.arange(train)), splits.test.subset(torch.arange(test)))


def check_command(arguments: list[str]) -> None:
    """The command exists with these options; its recipe has these keys."""
    command = get_command(app.app)
    context = command.make_context("robustcords", arguments[:1])
    chosen = command.get_command(context, arguments[0])
    assert chosen is not None, f"there is no command {arguments[0]}"
    if len(arguments) == 1:
        return
    given = chosen.make_context(arguments[0], arguments[1:], parent=context).params  # a command keeps its names of help
    if given.get("recipe"):
        recipe.load(given["recipe"], given.get("set_") or [])
    for source in given.get("recipes", ()):
        recipe.load(source)
    if arguments[0] == "sweep":
        sweep.grid(given["recipes"], given["over"] or [], given["set_"] or [])
    if arguments[0] == "reproduce":
        choices = {"datasets": given["dataset"], "rows": given["row"], "overrides": given["set_"]}
        reproduce.plan(given["table"], given["preset"], **{key: value or () for key, value in choices.items()})
    if arguments[0] == "new":
        scaffold.new(**{key: value for key, value in given.items() if key not in {"file", "minutes"} and value})
    if arguments[0] == "list":
        scaffold.listing(given["kind"])


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_command_lines_are_valid(page, in_page):
    in_page(page)
    for arguments in pages.commands(page):
        check_command(arguments)


def test_a_command_line_with_a_wrong_key_is_noticed(in_page):
    in_page(DOCS / "recipes.md")
    with pytest.raises(recipe.UserError, match="epoch"):
        check_command(["run", "my.toml", "--set", "train.epoch=2"])


def examples(page: Path) -> list[pages.Block]:
    """Returns the Python blocks of a page that are programs, not files."""
    return [block for block in pages.blocks(page, "python") if not block.file]


IN_PYTHON = examples(DOCS / "python.md")
ONLY_IN_README = [
    block for block in examples(pages.ROOT / "README.md") if block.text not in {x.text for x in IN_PYTHON}
]


def test_there_are_python_examples():
    assert len(IN_PYTHON) >= 4


@pytest.mark.parametrize("example", [*IN_PYTHON, *ONLY_IN_README], ids=lambda example: f"{example.page}:{example.line}")
def test_python_example_runs(example, in_page):
    script = in_page(pages.ROOT / "README.md") / "example.py"
    script.write_text(example.text)
    runpy.run_path(str(script), run_name="__main__")


def test_worked_example_of_a_strategy_runs(in_page, capsys):
    page = DOCS / "extending.md"
    folder = in_page(page)
    assert ["run", "my_strategy.toml"] in pages.commands(page)
    app.app(["run", "my_strategy.toml"], standalone_mode=False)
    assert "my_strategy:LongestGradient 20 %" in capsys.readouterr().out
    report = json.loads((folder / "runs/my_strategy/report.json").read_text())
    assert report["training"]["selections"] == [{"epoch": 0, "size": 54}, {"epoch": 1, "size": 54}]


@pytest.mark.parametrize("name", ["strategy", "state"])
def test_worked_example_of_a_strategy_passes_its_own_test(name, in_page):
    folder = in_page(DOCS / "extending.md")
    written = runpy.run_path(str(folder / f"test_my_{name}.py"))
    tests = [value for name, value in written.items() if name.startswith("test_")]
    assert tests
    for test in tests:
        test()


def test_the_data_set_that_stays_in_files_is_the_one_that_is_tested(in_page):
    folder = in_page(DOCS / "extending.md")
    shown = (folder / "my_mapped_data.py").read_text()
    tested = pages.ROOT / "tests/extension/components/memory_mapped.py"
    assert shown.removeprefix("# my_mapped_data.py\n") == tested.read_text()
    assert recipe.load(str(folder / "my_mapped_data.toml")).data.path == "bytes"


def test_worked_examples_of_other_parts_train_together(in_page):
    folder = in_page(DOCS / "extending.md")
    app.app(["run", "my_parts.toml", "--output", "out"], standalone_mode=False)
    assert (folder / "out/report.json").exists()
    for kind in ("data", "model", "augmentation", "attack", "loss", "margin"):
        assert f'name = "my_{kind}:' in (folder / "out/recipe.toml").read_text()


def test_worked_examples_of_an_effort_and_of_a_wrapper_train_together(in_page):
    folder = in_page(DOCS / "extending.md")
    app.app(["run", "my_effort.toml", "--output", "out"], standalone_mode=False)
    row = json.loads((folder / "out/metrics.jsonl").read_text())
    assert row["counts"].keys() == {"wrong", "right"}
    assert 'name = "my_wrapper:Shaken"' in (folder / "out/recipe.toml").read_text()
