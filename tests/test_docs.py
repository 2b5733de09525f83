from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path

import docs_pages as pages
import pytest
import typer

from robustcords.cli import app
from robustcords.config import registry
from robustcords.config.schema import Table, nested
from robustcords.data.parquet import ParquetConfig
from robustcords.data.sets import FolderConfig
from robustcords.evaluation.results import SHORT_FORMS
from robustcords.experiments import reproduce, sweep
from robustcords.methods.efforts.bullet import BulletSteps, BulletStepSizes
from robustcords.models.external import ExternalModel
from robustcords.models.robustbench import RobustBenchModel
from robustcords.recipe import messages, recipe, scaffold, tables

DOCS = pages.ROOT / "docs"
KEYS = pages.sections(DOCS / "recipes.md")

TABLES = {
    **{f"[{path[0]}]": registry.imported(target) for path, target in tables.TABLES.items() if len(path) == 1},
    "[selector]/[selector.proxy]": registry.imported(tables.TABLES["selector", "proxy"]),
    "[train]/[train.averaging]": registry.imported(tables.TABLES["train", "averaging"]),
    "[effort]/Bullet-Train/[effort.steps]": BulletSteps,
    "[effort]/Bullet-Train/[effort.step_size]": BulletStepSizes,
}
for attack in registry.names("evaluation_attack"):  # those without a table of their own have a section that names them
    named = [title for title, section in KEYS.items() if title.startswith("[evaluation]/") and attack in section.names]
    title = f"[evaluation]/[evaluation.{attack}]" if attack in SHORT_FORMS else named[0]
    TABLES[title] = registry.config_of(tables.find("evaluation_attack", attack))
SECTIONS = {"callback": "callbacks"}
"""Where a kind's components are described, if not in a section of its name."""
UNLISTED = {
    ("data", "Parquet files and hub ids"): ParquetConfig,
    ("data", "Class folders"): FolderConfig,
    ("model", "Torchvision and timm"): ExternalModel.Config,
    ("model", "RobustBench"): RobustBenchModel.Config,
}


def check_keys(table: type[Table], documented: dict[str, tuple[str, str]]) -> None:
    """The documented keys are the table's; the cells say its defaults, limits and choices."""
    named = {kind.key for kind in registry.KINDS.values()}
    fields = {key: field for key, field in table.model_fields.items() if key not in named}
    assert documented.keys() == fields.keys()
    written = table.model_construct().model_dump()
    for key, field in fields.items():
        allowed, default = documented[key]
        for fact in re.findall(r"\"\w+\"|\d[\d.]*|true", messages.allowed(table, (key,)) or ""):
            assert fact in allowed, f"{key}: {fact!r} is not in {allowed!r}"
        if key in nested(table):  # which a recipe fills in
            assert default == "below"
        elif field.is_required():
            assert default == "required"
        elif getattr(table.model_construct(), key) is None:
            assert default == "left out"
        elif not isinstance(field.default, Table):
            value = scaffold._toml(written[key])
            assert f"`{value}`" in default, f"{key}: the default is {value}"


@pytest.mark.parametrize("section", TABLES)
def test_every_key_of_a_table_is_documented(section):
    check_keys(TABLES[section], KEYS[section].keys)


def test_every_key_of_the_top_level_is_documented():
    plain = {key for key in recipe.Recipe.model_fields if f"[{key}]" not in KEYS}
    assert plain == KEYS["Top level"].keys.keys()


NAMED = [(kind, name) for kind in registry.KINDS for name in registry.names(kind) if kind != "evaluation_attack"]


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_every_option_of_a_component_is_documented(kind, name):
    table_name = f"[{SECTIONS.get(kind, kind)}]"
    about = [section for title, section in KEYS.items() if title.startswith(f"{table_name}/") and name in section.names]
    assert len(about) == 1
    check_keys(registry.config_of(tables.find(kind, name)), KEYS[table_name].keys | about[0].keys)


@pytest.mark.parametrize(("kind", "title"), UNLISTED)
def test_options_of_components_without_a_list_of_names_are_documented(kind, title):
    check_keys(UNLISTED[kind, title], KEYS[f"[{kind}]"].keys | KEYS[f"[{kind}]/{title}"].keys)


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    for target in pages.links(page):
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in pages.anchors(file), f"{page.name}: {target}"


@pytest.fixture
def in_page(tmp_path, monkeypatch):
    """Gives a function that goes into a fresh folder with the files of a page, importable from there."""
    before = set(sys.modules)

    def enter(page: Path) -> Path:
        pages.write_files(page, tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    yield enter
    for name in set(sys.modules) - before:
        if name.startswith(("my_", "test_my_")):
            del sys.modules[name]


def check_command(arguments: list[str]) -> None:
    """The command exists with these options; its recipe has these keys."""
    command = typer.main.get_command(app.app)
    context = command.make_context("robustcords", arguments[:1])
    chosen = command.get_command(context, arguments[0])
    assert chosen is not None, f"there is no command {arguments[0]}"
    if len(arguments) == 1:
        return
    given = chosen.make_context(arguments[0], arguments[1:]).params
    if given.get("recipe"):
        recipe.load(given["recipe"], given.get("set_") or [])
    for source in given.get("recipes", ()):
        recipe.load(source)
    if arguments[0] == "sweep":
        sweep.grid(given["recipes"], given["over"] or [], given["set_"] or [])
    if arguments[0] == "reproduce":
        options = {"datasets": given["dataset"], "rows": given["row"], "overrides": given["set_"]}
        reproduce.plan(given["table"], given["preset"], **{key: value or () for key, value in options.items()})
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
    assert report["training"]["selections"] == [{"epoch": 0, "size": 242}, {"epoch": 1, "size": 242}]


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
    assert shown.removeprefix("# my_mapped_data.py\n") == (pages.ROOT / "tests/extension/memory_mapped.py").read_text()
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
