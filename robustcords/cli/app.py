"""The command line: parses, calls, prints."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

# torch warns of hosts whose addresses have no names, once for each connection. It reads this when it is imported, also
# in the launcher that this process may become; a user's own setting stands.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _shipped(incomplete: str) -> list[str]:
    """Returns the shipped recipes that a shell may complete a word to; it completes files itself."""
    from robustcords.recipe.layers import shipped

    return [name for name in shipped() if name.startswith(incomplete)]


Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A TOML file, or the name of a shipped recipe.", autocompletion=_shipped),
]
Recipes = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE...", help="TOML files, or names of shipped recipes.", autocompletion=_shipped),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; may be repeated."),
]


_debug = False


def _show_version(wanted: bool) -> None:
    if wanted:
        from robustcords import __version__

        print(f"robustcords {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Robust image classifiers by adversarial training on small, periodically re-selected subsets."""
    del version
    global _debug  # noqa: PLW0603 -- `main` has no other way to know
    _debug = debug


@app.command()
def run(
    recipe: Recipe,
    set_: Set = None,
    output: Annotated[Path | None, typer.Option(help="Run directory; default: runs/<recipe name>, -2, -3, ...")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest complete checkpoint.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record some training steps, and show which operators take the time.")
    ] = False,
) -> None:
    """Train, evaluate and report."""
    from robustcords.cli.exit_status import is_main
    from robustcords.errors import printable
    from robustcords.recipe import recipe as recipes

    loaded = recipes.load(recipe, set_ or [])  # before torch is imported: what is wrong with it is said at once
    from robustcords.experiments import run as experiment
    from robustcords.report.run_tables import print_report

    path, report = experiment.run(loaded, _run_name(recipe), output, resume, profile)
    if is_main():
        print_report(report)
        print(f"\n{printable(str(path))}")


@app.command()
def plan(
    recipes: Recipes,
    budget: Annotated[str | None, typer.Option(help="Training time, such as '30 min'; default: the recipe's.")] = None,
    set_: Set = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Estimate the cost of recipes on this machine, from a few steps."""
    from robustcords.experiments import plan as plans
    from robustcords.recipe import recipe
    from robustcords.report.plan_tables import print_plans

    time = plans.time_of(budget)
    print_plans([plans.plan(recipe.load(source, set_ or []), source, time) for source in recipes], as_json=json_)


@app.command()
def evaluate(
    run_dir: Annotated[
        Path | None, typer.Argument(metavar="[RUN_DIR]", help="The run whose weights are evaluated.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="With --weights or --model: the recipe that defines data, threat and attacks.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="With --recipe: a safetensors file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="With --recipe: another model, such as robustbench:NAME, with its published weights."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Number of test images; 0 for all.")] = None,
    attack: Annotated[list[str] | None, typer.Option(help="pgd, autoattack or another; may be repeated.")] = None,
    epsilon: Annotated[list[str] | None, typer.Option(help="Radius such as 8/255; may be repeated.")] = None,
    sanity: Annotated[
        bool, typer.Option("--sanity", help="Also check for masked gradients, on 256 images or --limit.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="File for the report: FILE.md is Markdown, any other JSON.")
    ] = None,
    set_: Set = None,
) -> None:
    """Evaluate a run, a weights file or a published model."""
    from robustcords.cli.exit_status import is_main
    from robustcords.experiments import evaluation
    from robustcords.report.run_tables import print_report

    changes = evaluation.Changes(limit, attack or (), epsilon or (), sanity)
    report = evaluation.evaluate(run_dir, recipe, weights, set_ or [], changes, output, model)
    if is_main():
        print_report(report)


@app.command()
def select(
    recipe: Recipe,
    weights: Annotated[Path, typer.Option(help="Weights to select with: a safetensors file.")],
    output: Annotated[Path, typer.Option(help="A new .npz file for indices and weights.")],
    set_: Set = None,
) -> None:
    """Select one subset with given weights.

    Writes its indices and weights, and shows a summary.
    """
    from robustcords.cli.exit_status import is_main
    from robustcords.experiments import selection
    from robustcords.recipe import recipe as recipes
    from robustcords.report.selection_tables import print_selection

    summary = selection.select(recipes.load(recipe, set_ or []), weights, output)
    if is_main():
        print_selection(summary)


@app.command()
def sweep(
    recipes: Recipes,
    over: Annotated[
        list[str] | None, typer.Option("--over", metavar="KEY=V1,V2,...", help="Values of a key; may be repeated.")
    ] = None,
    set_: Set = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the runs; default: runs/<recipe name>-sweep.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one per GPU.")] = None,
) -> None:
    """Run every combination of some values.

    Finished runs are skipped, interrupted ones continue.
    """
    from robustcords.experiments import compare, fleet
    from robustcords.experiments import sweep as sweeps
    from robustcords.report.comparison_tables import print_comparison

    folder = output or Path("runs") / f"{Path(recipes[0]).stem}-sweep"
    tasks = sweeps.grid(recipes, over or [], set_ or [])
    page = compare.page_in(folder)
    ended = fleet.run_all(tasks, folder, jobs)
    if any(job.is_done for job in ended):
        print_comparison(compare.report_on(folder, page, ended))
        print(f"\n{page}")
    if not all(job.is_done for job in ended):
        raise typer.Exit(1)


@app.command()
def reproduce(
    table: Annotated[str, typer.Argument(help="table1 ... table4, figure1 or figure2.")],
    preset: Annotated[str, typer.Option(help="paper, small (for a CPU) or smoke (two minutes).")] = "paper",
    dataset: Annotated[
        list[str] | None, typer.Option(help="Only rows of this data set; may be repeated; default: cifar10.")
    ] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only this row; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="May be repeated; default: 0.")] = None,
    set_: Set = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the runs; default: runs/TABLE-PRESET.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one per GPU.")] = None,
) -> None:
    """Run a table of the paper, and compare.

    Adds the baselines that the paper lacks, and shows our numbers alongside the paper's.
    """
    from robustcords.experiments import compare, fleet
    from robustcords.experiments import reproduce as tables
    from robustcords.report.paper_tables import labels, print_alongside, section

    plan = tables.plan(
        table, preset, datasets=dataset or (), rows=row or (), seeds=seed or (0,), overrides=set_ or (), folder=output
    )
    page = compare.page_in(plan.folder)
    ended = tables.run(plan, jobs)
    runs, others = plan.runs()
    others += fleet.failures(ended)
    if done := [run.path for mine in runs.values() for run in mine]:
        alongside, names = section(plan.table, runs), labels(plan.table, runs)
        compare.report(done, page, sections=[alongside], left_out=others, labels=names)
        print_alongside(plan.table, runs)
        for line in [*others, "", page]:
            print(line)
    if len(ended) < len(plan.rows) * len(plan.seeds) or any(job.state == "failed" for job in ended):
        raise typer.Exit(1)


@app.command()
def report(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Finished runs, or folders that contain some.")
    ],
    output: Annotated[Path, typer.Option(help="The page, FILE.html; FILE.md and FILE.csv are written next to it.")],
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="RUN_DIR", help="What to compare with; default: full data, same loss, without Bullet."),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Number of adversarial images to show for each method.")] = 6,
) -> None:
    """Compare runs on one page.

    With accuracy, cost, intervals, charts and images.
    """
    from robustcords.experiments import compare
    from robustcords.report.comparison_tables import print_comparison

    print_comparison(compare.report(run_dirs, output, baseline, images))
    print(f"\n{output}")


@app.command()
def watch(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="Runs, or folders that contain some.")],
    once: Annotated[bool, typer.Option("--once", help="Show the state once, and exit.")] = False,
) -> None:
    """Show the progress of runs until they are done.

    Epochs, loss, validation accuracy and remaining time of finished and unfinished runs.
    """
    from robustcords.experiments import watch as runs

    runs.watch(run_dirs, once=once)


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run with weights.")],
    to: Annotated[str, typer.Option(help="torch, onnx, hub (Hugging Face) or robustbench.")] = "torch",
    weights: Annotated[str | None, typer.Option(help="best or last; default: those evaluated.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="A new folder; default: RUN-FORMAT in the current folder.")
    ] = None,
) -> None:
    """Write a run's model to use elsewhere.

    A folder with the model, its weights, classes, measured accuracy, and a script that loads it without robustcords.
    """
    from robustcords.experiments import export as exports

    print(exports.export(run_dir, to, weights, output))


@app.command()
def validate(
    recipes: Recipes,
    set_: Set = None,
) -> None:
    """Check recipes without running them."""
    from robustcords.errors import UserError, printable, together
    from robustcords.recipe import recipe

    errors = []
    for source in recipes:
        try:
            recipe.load(source, set_ or [])
        except UserError as error:
            errors.append(error)
        else:
            print(f"{printable(source)}: valid")
    together(errors)


@app.command("list")
def list_(kind: Annotated[str | None, typer.Argument(help="data, model, attack, loss, ... or recipe.")] = None) -> None:
    """List the components that a recipe can name."""
    from robustcords.recipe import scaffold

    for name, entries in scaffold.listing(kind).items():
        print(f"{name}:")
        width = max(map(len, entries), default=0)
        for entry, description in entries.items():
            print(f"  {entry:{width}}  {description}")


@app.command()
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The recipe to write; must not exist.")],
    data: Annotated[str, typer.Option(help="Data set.")] = "cifar10",
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="Choose everything else so that it finishes in this time on this machine."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model; default: resnet18, with --minutes chosen automatically.")
    ] = None,
    loss: Annotated[str, typer.Option(help="Loss.")] = "trades",
    selector: Annotated[str, typer.Option(help="Selector, or none for full data.")] = "adv-glister",
    fraction: Annotated[float, typer.Option(help="Share of the training set to select, in (0, 1].")] = 0.3,
    bullet: Annotated[bool, typer.Option("--bullet", help="Bullet-Train: attack steps by kind of example.")] = False,
    method: Annotated[str, typer.Option(help="What a training step does; see `list method`.")] = "adversarial",
    effort: Annotated[
        str | None, typer.Option(help="How strongly each example is attacked; see `list effort`.")
    ] = None,
) -> None:
    """Write a commented recipe to start from."""
    if minutes is not None:
        from robustcords.experiments import new_recipe

        print("\n".join(new_recipe.write(file, data, minutes, model)))
    else:
        from robustcords.recipe import scaffold

        choices = {"loss": loss, "selector": selector, "fraction": fraction, "bullet": bullet, "method": method}
        scaffold.write(file, data=data, model=model or "resnet18", effort=effort, **choices)
    print(f"{file}: written; robustcords run {shlex.quote(str(file))}")


@app.command()
def doctor() -> None:
    """Check the installation.

    Tests every component, and says how to fix those that do not work.
    """
    from robustcords.cli.doctor import examine, print_findings

    findings = examine()
    print_findings(findings)
    if not all(finding.works for finding in findings if finding.needed):
        raise typer.Exit(1)


def _run_name(source: str) -> str:
    """Returns what a run is called: its recipe's name, or for a run's own recipe.toml the name of that run."""
    path = Path(source)
    name = path.parent.name if path.stem == "recipe" and path.parent.name else path.stem
    return name if name.strip(".") else "recipe"  # a folder called "..", in runs/, would be the one around it


def main() -> None:
    """Runs the command line; `robustcords.cli.exit_status` has the exit status of what fails, and 0 is done."""
    from robustcords.cli.exit_status import ending
    from robustcords.cli.printing import show_warning
    from robustcords.errors import UserError

    warnings.showwarning = show_warning
    common()
    with ending(lambda: _debug):
        try:
            status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        except typer.TyperException as error:
            raise UserError(error.format_message()) from error
        except typer.Abort:
            sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)
