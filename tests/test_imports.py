"""Who may import whom, read from the source."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

from support.cases import cases

PACKAGE = Path(__file__).parents[1] / "robustcords"
FILES = sorted(PACKAGE.rglob("*.py"))
FLOORS = (
    ("cli",),
    ("experiments",),
    ("report",),
    ("paper",),
    ("recipe",),
    ("training",),
    ("methods", "selection", "evaluation"),
    ("attacks",),
    ("losses", "data", "models", "threats"),
    ("runtime",),
    ("engine", "storage", "config"),
    ("errors", "rng"),
)
"""Folders, from what a person calls down to the ground. Imports go down, and never sideways to another folder."""

COMPONENTS = ("attacks", "losses", "threats", "models", "data", "methods", "selection")


def name_of(file: Path) -> str:
    """Returns a file's dotted name below the package: ``attacks.pgd``, or ``""`` for the package itself."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yields the full dotted names of everything that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


IMPORTS = {name_of(file): set(imported(parsed(file))) for file in FILES}
INSIDE = {
    name: {each.removeprefix("robustcords.") for each in found if each.startswith("robustcords.")}
    for name, found in IMPORTS.items()
}


def below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def importers(*packages: str, among: dict[str, set[str]] = IMPORTS) -> set[str]:
    """Returns the modules that import any of some packages, or something from them."""
    return {name for name, found in among.items() if any(below(each, *packages) for each in found)}


def test_the_reader_finds_what_is_there():
    assert {"methods.base.Method", "storage.run_directory.RunDirectory"} <= INSIDE["training.trainer"]
    assert len(FILES) > 50


def test_imports_go_down():
    level = {folder: number for number, floor in enumerate(FLOORS) for folder in floor}
    assert level.keys() == {name.partition(".")[0] for name in INSIDE} - {"", "__main__"}
    wrong = {
        f"{name} imports {each}"
        for name, found in INSIDE.items()
        if (own := name.partition(".")[0]) in level
        for each in found
        if (other := each.partition(".")[0]) != own and other in level and level[other] <= level[own]
    }
    assert wrong == set()


def test_no_modules_import_each_other_in_a_circle():
    """Inside functions neither; what type checkers alone read is left out."""
    graph = {}
    for file in FILES:
        tree = parsed(file)
        tree.body = [node for node in tree.body if not ast.unparse(node).startswith("if TYPE_CHECKING:")]
        graph[name_of(file)] = {
            module
            for each in imported(tree)
            if each.startswith("robustcords.")
            for name in [each.removeprefix("robustcords.")]
            for module in (name, name.rpartition(".")[0])
            if module in INSIDE
        }
    assert "data.decoding" in graph["data.images"]
    TopologicalSorter(graph).prepare()


def test_files_of_tests_have_names_of_their_own():
    """They are modules of no package, of which pytest collects one of each name."""
    names = [file.name for file in Path(__file__).parent.rglob("*.py") if file.name != "conftest.py"]
    assert sorted(names) == sorted(set(names))


def test_the_root_holds_little():
    assert {file.stem for file in PACKAGE.glob("*.py")} == {"__init__", "__main__", "errors", "rng"}


def test_the_loop_knows_base_classes_only():
    loop = ("training.trainer", "training.loader", "selection.selector", "methods.adversarial", "methods.base")
    named = ("attacks", "losses", "models", "methods.efforts", "selection.strategies", "selection.cords")
    found = {each for name in loop for each in INSIDE[name] if below(each, *named)}
    assert found
    bases = (
        "attacks.base",
        "losses.base",
        "losses.check",
        "losses.context",
        "losses.objective",
        "methods.efforts.base",
        "methods.efforts.batch",
        "methods.efforts.uniform",  # what no effort is
    )
    assert all(below(each, *bases) for each in found)


def test_one_effort_is_known_by_name_to_its_short_form_and_to_reports_alone():
    named = {name for file in FILES if "bullet" in file.read_text(encoding="utf-8").lower() for name in [name_of(file)]}
    own = {
        "",
        "methods.efforts",
        "methods.efforts.bullet",
        "recipe.short_forms",
    }  # the public name, the registry's line
    worded = {name for name in named if below(name, "cli", "report")} | {"experiments.compare", "recipe.scaffold"}
    assert own <= named <= own | worded


def test_the_evaluation_and_reports_know_base_classes_and_types_only():
    loop = ("evaluation.evaluate", "evaluation.evaluator", "evaluation.ledger", "evaluation.results")
    named = {each for name in loop for each in INSIDE[name] if below(each, "evaluation.attacks")}
    assert {each.rpartition(".")[0] for each in named} == {"evaluation.attacks.base"}
    assert all(below(each, "config", "storage") for each in INSIDE["evaluation.results"])
    assert not any(below(name, "report", "cli") for name in importers("evaluation.attacks", among=INSIDE))


def test_reports_are_read_by_their_classes_alone():
    keys = {"recipe", "environment", "training", "evaluation", "pgd", "autoattack", "sanity", "examples", "seconds"}
    subscripts = {
        (name_of(file), node.slice.value)
        for file in FILES
        if below(name_of(file), "report", "cli", "experiments.fleet", "experiments.compare", "experiments.reproduce")
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant)
    }
    assert ("report.comparison_charts", "xaxis") in subscripts, "the reader should find those that there are"
    assert {(name, key) for name, key in subscripts if key in keys} == set()


@cases(
    ("package", "module"),
    [
        ("cords", "selection._cords"),
        ("pyautoattack", "evaluation.attacks.autoattack"),
        ("submodlib", "selection.strategies.adv_craig"),
        ("typer", "cli.app"),
    ],
)
def test_one_module_imports_it(package: str, module: str):
    assert importers(package) - {"cli.doctor"} == {module}


def test_the_command_line_uses_no_private_part_of_typer():
    tree = parsed(PACKAGE / "cli" / "app.py")
    used = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("typer.")
    } | {name for name in imported(tree) if below(name, "typer")}
    assert {"typer.Typer", "typer.TyperException"} <= used
    assert not any(part.startswith("_") for name in used for part in name.split("."))


def test_no_component_imports_accelerate():
    assert importers("accelerate")
    assert not any(below(name, *COMPONENTS) for name in importers("accelerate"))


def test_the_command_line_imports_heavy_packages_only_when_a_command_runs():
    tree = parsed(PACKAGE / "cli" / "app.py")
    inner = {id(node) for outer in ast.walk(tree) if isinstance(outer, ast.FunctionDef) for node in ast.walk(outer)}
    outer = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in inner]
    roots = {name.partition(".")[0] for node in outer for name in imported(node)}
    assert roots <= {*sys.stdlib_module_names, "typer"}


@cases("file", FILES)
def test_files_stay_readable(file: Path):
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)


def test_the_loop_fits_on_a_screen():
    tree = parsed(PACKAGE / "training" / "trainer.py")
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno
    }
    assert lengths["fit"] + lengths["train_step"] <= 100
